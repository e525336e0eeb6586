"""Write internal/qwenvl/testdata/golden.json: what transformers computes for
fixed weights that Go makes by the same formula, so that no weights are stored.

Run from the repository's root: python tests/python/make_engine_golden.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "internal" / "qwenvl" / "testdata" / "golden.json"

CONFIG: dict = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "hidden_act": "silu",
    "hidden_size": 72,
    "intermediate_size": 50,
    "max_position_embeddings": 512,
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]},
    "tie_word_embeddings": False,
    "vocab_size": 61,
    "eos_token_id": 51,
    "image_token_id": 52,
    "video_token_id": 53,
    "vision_start_token_id": 54,
    "vision_end_token_id": 55,
    "vision_config": {
        "depth": 3,
        "hidden_act": "silu",
        "hidden_size": 24,
        "intermediate_size": 30,
        "num_heads": 2,
        "in_chans": 3,
        "out_hidden_size": 72,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "window_size": 16,
        "fullatt_block_indexes": [1],
        "temporal_patch_size": 2,
    },
}
GRIDS = [[1, 6, 10], [1, 2, 4]]  # 3x5 and 1x2 merged tokens; windows of 2x2 cut at the border


def splitmix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser on uint64 counters."""
    with np.errstate(over="ignore"):
        z = x * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def draw(stream: int, n: int) -> np.ndarray:
    """n numbers in [-0.5, 0.5) of a stream, exact in float32."""
    counters = (np.uint64(stream) << np.uint64(32)) + np.arange(1, n + 1, dtype=np.uint64)
    return (splitmix(counters) >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5


def name_stream(name: str) -> int:
    """FNV-1a of a tensor's name, 32 bits."""
    h = 0x811C9DC5
    for byte in name.encode():
        h = ((h ^ byte) * 0x01000193) & 0xFFFFFFFF
    return h


def weight(name: str, shape: list[int]) -> torch.Tensor:
    """The fixed tensor of a name: norms near 1, biases small, matrices of unit gain."""
    n = math.prod(shape)
    u = draw(name_stream(name), n)
    if "norm" in name or "ln_q" in name:
        values = 1 + 0.4 * u
    elif name.endswith(".bias"):
        values = 0.4 * u
    else:
        fan_in = 4 if "embed_tokens" in name else n // shape[0]
        values = u * (2 * math.sqrt(3) / math.sqrt(fan_in))
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def published(name: str) -> str:
    """The published name of a transformers parameter."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def main() -> None:
    config = Qwen2_5_VLConfig(**CONFIG)
    model = Qwen2_5_VLForConditionalGeneration(config).eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weight(published(name), list(parameter.shape)))
    dim = 3 * 2 * 4 * 4
    patches = [
        torch.from_numpy((4 * draw(900 + i, g[0] * g[1] * g[2] * dim)).astype(np.float32)).reshape(-1, dim)
        for i, g in enumerate(GRIDS)
    ]
    image = CONFIG["image_token_id"]
    prompt = [3, 54, *[image] * 15, 55, 7, 8, 54, *[image] * 2, 55, 9, 10]
    response = [(i * 17 + 5) % 50 for i in range(70)]
    ids = torch.tensor([prompt + response])
    types = (ids == image).int()
    grids = torch.tensor(GRIDS)
    with torch.no_grad():
        features = model.model.visual(torch.cat(patches), grid_thw=grids).pooler_output
        logits = model(
            input_ids=ids,
            pixel_values=torch.cat(patches),
            image_grid_thw=grids,
            mm_token_type_ids=types,
            attention_mask=torch.ones_like(ids),
        ).logits[0]
        positions, _ = model.model.get_rope_index(ids, types, image_grid_thw=grids)
        text = model(input_ids=ids[:, -40:]).logits[0, -1]
    at = [len(prompt) - 1 + t for t in (0, 1, 2, 40, 63, 64, 65, 70)]
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(
        json.dumps(
            {
                "config": CONFIG,
                "grids": GRIDS,
                "prompt": prompt,
                "response": response,
                "positions": positions[:, 0].T.tolist(),
                "features": [[round(v, 7) for v in row] for row in features[:, :6].tolist()],
                "logit_steps": [i - len(prompt) + 1 for i in at],
                "logits": [[round(v, 6) for v in logits[i].tolist()] for i in at],
                "text_logits": [round(v, 6) for v in text.tolist()],
            }
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
