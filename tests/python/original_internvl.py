"""A micro InternVL in its original layout (InternVLChatModel): a directory as OpenGVLab publishes them.

Its sizes are those of the micro -hf one of trainer/pytorch/tests/micro_internvl.py, its names and configuration those
of InternVL3-1B-Pretrained. The tokenizer has the old form only: vocab.json, merges.txt and added_tokens.json.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

TILE = 56  # pixels of a tile's side: 4 x 4 patches, 4 tokens after shuffling
MOST_TILES = 4
WIDTH, MLP, LAYERS, HEADS, KEY_HEADS = 64, 128, 2, 2, 1
VISION, VISION_MLP, BLOCKS = 32, 64, 2

CORPUS = "system user assistant the red drusen in the upper left you are helpful what lesion is it I see 42 of them"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
PLAIN = ("<tool_call>", "</tool_call>")
INTERN = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")

# Strings only: whoever serves the original puts a line with <image> in front of the text for every image.
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# transformers has no class for this model type; published checkpoints bring one, and so does this.
CONFIGURATION = """
from transformers import PretrainedConfig, Qwen2Config


class VisionConfig(PretrainedConfig):
    model_type = "intern_vit_6b"


class ChatConfig(PretrainedConfig):
    model_type = "internvl_chat"
    sub_configs = {"llm_config": Qwen2Config, "vision_config": VisionConfig}

    def __init__(self, llm_config=None, vision_config=None, **kwargs):
        self.llm_config = Qwen2Config(**(llm_config or {}))
        self.vision_config = VisionConfig(**(vision_config or {}))
        super().__init__(**kwargs)

    def get_text_config(self, *args, **kwargs):
        return getattr(self, "text_config", None) or self.llm_config
"""


def words() -> tuple[dict[str, int], list[tuple[str, str]], dict[str, tuple[int, bool]]]:
    """Learn a vocabulary; return it, its merges, and the added tokens with their ids and whether they are special."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [CORPUS] * 50, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(core.to_str())["model"]
    vocab = model["vocab"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    added = {t: (len(vocab) + i, t not in PLAIN) for i, t in enumerate((*SPECIAL, *PLAIN, *INTERN))}
    return vocab, merges, added


def config(vocab: int, dtype: str) -> dict[str, Any]:
    """Return config.json with the keys of InternVL3's."""
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoConfig": "configuration_chat.ChatConfig"},
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": TILE,
        "image_fold": None,
        "llm_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "hidden_act": "silu",
            "hidden_size": WIDTH,
            "initializer_range": 0.02,
            "intermediate_size": MLP,
            "max_position_embeddings": 2048,
            "max_window_layers": 70,
            "model_type": "qwen2",
            "moe_config": None,
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": KEY_HEADS,
            "rms_norm_eps": 1e-6,
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "torch_dtype": dtype,
            "use_bfloat16": True,
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": vocab,
        },
        "max_dynamic_patch": MOST_TILES,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "output_attentions": False,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "attention_dropout": 0.0,
            "drop_path_rate": 0.1,
            "dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_size": VISION,
            "image_size": TILE,
            "initializer_factor": 0.1,
            "initializer_range": 1e-10,
            "intermediate_size": VISION_MLP,
            "layer_norm_eps": 1e-6,
            "model_type": "intern_vit_6b",
            "norm_type": "layer_norm",
            "num_attention_heads": 2,
            "num_channels": 3,
            "num_hidden_layers": BLOCKS,
            "patch_size": 14,
            "qk_normalization": False,
            "qkv_bias": True,
            "use_flash_attn": False,
        },
    }


def shapes(vocab: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the original layout."""
    patches = (TILE // 14) ** 2
    out: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, VISION),
        "vision_model.embeddings.position_embedding": (1, patches + 1, VISION),
        "vision_model.embeddings.patch_embedding.weight": (VISION, 3, 14, 14),
        "vision_model.embeddings.patch_embedding.bias": (VISION,),
    }

    def linear(name: str, rows: int, columns: int, bias: bool = True) -> None:
        out[f"{name}.weight"] = (rows, columns)
        if bias:
            out[f"{name}.bias"] = (rows,)

    for n in range(BLOCKS):
        at = f"vision_model.encoder.layers.{n}."
        for norm in ("norm1", "norm2"):
            out[f"{at}{norm}.weight"] = out[f"{at}{norm}.bias"] = (VISION,)
        out[f"{at}ls1"] = out[f"{at}ls2"] = (VISION,)
        linear(f"{at}attn.qkv", 3 * VISION, VISION)
        linear(f"{at}attn.proj", VISION, VISION)
        linear(f"{at}mlp.fc1", VISION_MLP, VISION)
        linear(f"{at}mlp.fc2", VISION, VISION_MLP)
    out["mlp1.0.weight"] = out["mlp1.0.bias"] = (4 * VISION,)
    linear("mlp1.1", WIDTH, 4 * VISION)
    linear("mlp1.3", WIDTH, WIDTH)
    out["language_model.model.embed_tokens.weight"] = (vocab, WIDTH)
    for n in range(LAYERS):
        at = f"language_model.model.layers.{n}."
        out[f"{at}input_layernorm.weight"] = out[f"{at}post_attention_layernorm.weight"] = (WIDTH,)
        linear(f"{at}self_attn.q_proj", WIDTH, WIDTH)
        for name in ("k_proj", "v_proj"):
            linear(f"{at}self_attn.{name}", WIDTH // HEADS * KEY_HEADS, WIDTH)
        linear(f"{at}self_attn.o_proj", WIDTH, WIDTH, bias=False)
        linear(f"{at}mlp.gate_proj", MLP, WIDTH, bias=False)
        linear(f"{at}mlp.up_proj", MLP, WIDTH, bias=False)
        linear(f"{at}mlp.down_proj", WIDTH, MLP, bias=False)
    out["language_model.model.norm.weight"] = (WIDTH,)
    out["language_model.lm_head.weight"] = (vocab, WIDTH)
    return out


def weights(vocab: int, dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    """Draw random weights, every vector too, so that no tensor can take another's place unseen."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in shapes(vocab).items():
        noise = torch.randn(*shape, generator=g)
        if name.endswith(("embed_tokens.weight", "class_embedding", "position_embedding")):
            noise *= 0.3
        elif len(shape) > 1:
            noise /= math.sqrt(math.prod(shape[1:]))
        else:
            noise = noise * 0.1 + (0 if name.endswith("bias") else 1)
        out[name] = noise.to(dtype)
    return out


def write_checkpoint(path: Path, dtype: torch.dtype = torch.float32, seed: int = 0, shards: int = 1) -> Path:
    """Write the directory, its weights in one file or in several with an index."""
    path.mkdir(parents=True)
    vocab, merges, added = words()
    size = len(vocab) + len(added)
    tensors = weights(size, dtype, seed)
    if shards == 1:
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    else:
        files: dict[str, str] = {}
        for n in range(shards):
            file = f"model-{n + 1:05d}-of-{shards:05d}.safetensors"
            part = dict(list(tensors.items())[n::shards])
            save_file(part, path / file, metadata={"format": "pt"})
            files |= dict.fromkeys(part, file)
        write(path / "model.safetensors.index.json", {"metadata": {}, "weight_map": files})
    write(path / "config.json", config(size, str(dtype).removeprefix("torch.")))
    (path / "configuration_chat.py").write_text(CONFIGURATION)
    write(path / "vocab.json", vocab)
    (path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    write(path / "added_tokens.json", {t: i for t, (i, _) in added.items()})
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    tokenizer = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): {"content": t, **flags, "special": s} for t, (i, s) in added.items()},
        "additional_special_tokens": [t for t in SPECIAL if t != "<|endoftext|>"],
        "bos_token": None,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 1000000,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write(path / "tokenizer_config.json", tokenizer)
    return path


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False))
