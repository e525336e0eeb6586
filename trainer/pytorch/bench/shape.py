"""Qwen2.5-VL-3B's shape with random weights, and batches of groups of one shape or ragged."""

from __future__ import annotations

import numpy as np
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from uadt_trainer.types import Group, Trace

VISION_START, VISION_END, PAD, VIDEO, END = 151652, 151653, 151655, 151656, 151645
VOCAB, SIDE = 151936, 448  # pixels of an image's side: 32 x 32 patches, 256 tokens


def config(tiny: bool) -> Qwen2_5_VLConfig:
    """Return the published sizes, or ones that a CPU can run, to check the plumbing."""
    text = {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "tie_word_embeddings": True,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if tiny:
        text |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        text |= {"num_key_value_heads": 1}
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
        vision |= {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
        vision["fullatt_block_indexes"] = [1]
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=PAD,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        video_token_id=VIDEO,
        tie_word_embeddings=True,
        eos_token_id=END,
    )


def model(device: torch.device, dtype: torch.dtype, tiny: bool) -> Qwen2_5_VLForConditionalGeneration:
    """Build a model with random weights on the device."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            made = Qwen2_5_VLForConditionalGeneration(config(tiny))
    finally:
        torch.set_default_dtype(before)
    return made.train()


def groups(count: int, prompt: int, lengths: list[list[int]], seed: int) -> list[Group]:
    """Make groups whose prompts hold one image; lengths are [count][G]."""
    rng = np.random.default_rng(seed)
    tokens = (SIDE // 28) ** 2
    out = []
    for q in range(count):
        ids = rng.integers(100, 150000, prompt).astype(np.int32)
        ids[5], ids[6 : 6 + tokens], ids[6 + tokens] = VISION_START, PAD, VISION_END
        traces = tuple(Trace(rng.integers(100, 150000, n).astype(np.int32), np.ones(n, dtype=bool)) for n in lengths[q])
        out.append(Group(f"g{q}", ids, (f"i{q}",), traces, q))
    return out


def lognormal(count: int, traces: int, mean: int, longest: int, seed: int) -> list[list[int]]:
    """Ragged lengths around a mean, most of them shorter, a few much longer."""
    rng = np.random.default_rng(seed)
    sigma = 0.6
    drawn = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, (count, traces))
    return np.clip(drawn.round(), 16, longest).astype(int).tolist()
