"""Micro Qwen2.5-VL checkpoints, batches and the PyTorch side of the gradient comparison."""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

IMAGE_PAD, VIDEO_PAD, VISION_START, VISION_END = 396, 397, 394, 395


def config(tie: bool) -> dict[str, Any]:
    """config.json of a model with two layers, in the published flat form."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1, "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END, "image_token_id": IMAGE_PAD, "video_token_id": VIDEO_PAD,
        "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 512,
        "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "use_sliding_window": False, "tie_word_embeddings": tie, "torch_dtype": "float32", "vocab_size": 398,
        "vision_config": {
            "model_type": "qwen2_5_vl", "depth": 2, "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 48,
            "num_heads": 2, "in_chans": 3, "out_hidden_size": 64, "patch_size": 14, "spatial_merge_size": 2,
            "spatial_patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1], "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
    }  # fmt: skip


PREPROCESSOR: dict[str, Any] = {
    "min_pixels": 4 * 28 * 28, "max_pixels": 64 * 28 * 28, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
}  # fmt: skip


def shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Published names and shapes of every tensor of a checkpoint."""
    v = c["vision_config"]
    h, hd = c["hidden_size"], c["hidden_size"] // c["num_attention_heads"]
    vh, vi = v["hidden_size"], v["intermediate_size"]
    out: dict[str, tuple[int, ...]] = {"visual.patch_embed.proj.weight": (vh, 3, 2, 14, 14)}

    def linear(name: str, o: int, i: int, bias: bool) -> None:
        out[name + ".weight"] = (o, i)
        if bias:
            out[name + ".bias"] = (o,)

    for n in range(v["depth"]):
        p = f"visual.blocks.{n}."
        out[p + "norm1.weight"] = out[p + "norm2.weight"] = (vh,)
        linear(p + "attn.qkv", 3 * vh, vh, True)
        linear(p + "attn.proj", vh, vh, True)
        linear(p + "mlp.gate_proj", vi, vh, True)
        linear(p + "mlp.up_proj", vi, vh, True)
        linear(p + "mlp.down_proj", vh, vi, True)
    out["visual.merger.ln_q.weight"] = (vh,)
    linear("visual.merger.mlp.0", 4 * vh, 4 * vh, True)
    linear("visual.merger.mlp.2", h, 4 * vh, True)
    out["model.embed_tokens.weight"] = (c["vocab_size"], h)
    for n in range(c["num_hidden_layers"]):
        p = f"model.layers.{n}."
        out[p + "input_layernorm.weight"] = out[p + "post_attention_layernorm.weight"] = (h,)
        linear(p + "self_attn.q_proj", c["num_attention_heads"] * hd, h, True)
        linear(p + "self_attn.k_proj", c["num_key_value_heads"] * hd, h, True)
        linear(p + "self_attn.v_proj", c["num_key_value_heads"] * hd, h, True)
        linear(p + "self_attn.o_proj", h, h, False)
        linear(p + "mlp.gate_proj", c["intermediate_size"], h, False)
        linear(p + "mlp.up_proj", c["intermediate_size"], h, False)
        linear(p + "mlp.down_proj", h, c["intermediate_size"], False)
    out["model.norm.weight"] = (h,)
    if not c["tie_word_embeddings"]:
        out["lm_head.weight"] = (c["vocab_size"], h)
    return out


def write_checkpoint(
    path: Path, tie: bool, seed: int, near: Path | None = None, sizes: dict[str, Any] | None = None
) -> None:
    """Write a random checkpoint, or one whose weights are those of `near` plus a little noise."""
    from safetensors.torch import load_file

    path.mkdir(parents=True)
    c = sizes or config(tie)
    g = torch.Generator().manual_seed(seed)
    base = load_file(near / "model.safetensors") if near else {}
    weights: dict[str, torch.Tensor] = {}
    for name, shape in shapes(c).items():
        noise = torch.randn(*shape, generator=g)
        if near:
            weights[name] = base[name] + 0.02 * noise
        elif name.endswith("embed_tokens.weight"):
            weights[name] = noise * 0.5
        elif len(shape) > 1:
            weights[name] = noise / math.sqrt(math.prod(shape[1:]))
        else:
            weights[name] = noise * 0.1 + (0 if name.endswith("bias") else 1)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(c))
    (path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))


@dataclass
class Picture:
    """An image file and what transformers' processor makes of it."""

    digest: str
    pixels: torch.Tensor  # [patches, 3*2*14*14]
    grid: torch.Tensor  # [1, 3]

    @property
    def tokens(self) -> int:
        return int(self.grid.prod()) // 4


def write_picture(folder: Path, width: int, height: int, seed: int) -> Picture:
    """Write a smooth random PNG and preprocess it."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (5 + 9 * rng.random()) + y / (5 + 9 * rng.random())) for _ in range(3)]
    array = (127 + 120 * np.stack(waves, -1)).astype(np.uint8)
    image = Image.fromarray(array)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    (folder / digest).write_bytes(data)
    keys = ("min_pixels", "max_pixels", "patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")
    processor = Qwen2VLImageProcessor(**{k: PREPROCESSOR[k] for k in keys})
    out = processor(images=[image], return_tensors="pt")
    return Picture(digest, out["pixel_values"].float(), out["image_grid_thw"])


def published(name: str) -> str:
    """transformers' parameter name -> the published checkpoint's."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
