"""Packed rows against the naive way: every trace by itself through transformers' own forward."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from uadt_trainer.model import Pixels, Policy
from uadt_trainer.packing import pack
from uadt_trainer.types import Group, Trace

IMAGE, START, END, VOCAB = 300, 301, 302, 320


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    text = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
        "window_size": 112,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    path = tmp_path_factory.mktemp("qwen")
    model.save_pretrained(path)
    assert json.loads((path / "config.json").read_text())["model_type"] == "qwen2_5_vl"
    return path


def groups(seed: int) -> tuple[list[Group], list[list[tuple[int, int, int]]], Pixels]:
    """Two groups with images of different size and ragged traces."""
    rng = np.random.default_rng(seed)
    grids = [[(1, 6, 6)], [(1, 4, 8), (1, 12, 10)]]
    made, patches = [], []
    for index, images in enumerate(grids):
        prompt = [5, 6]
        for t, h, w in images:
            prompt += [START] + [IMAGE] * (t * h * w // 4) + [END]
            patches.append(rng.standard_normal((t * h * w, 1176)))
        prompt += list(rng.integers(0, 200, 5))
        traces = [
            Trace(tokens=rng.integers(0, 200, n).astype(np.int32), mask=np.ones(n, dtype=bool))
            for n in (3, 11, 1, 7)[: 3 + index]
        ]
        made.append(Group(f"q{index}", np.array(prompt, dtype=np.int32), ("d",) * len(images), tuple(traces)))
    values = torch.from_numpy(np.concatenate(patches)).float()
    return made, grids, Pixels(values, torch.tensor([g for image in grids for g in image]))


def naive(model: torch.nn.Module, made: list[Group], grids: list, pixels: Pixels) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies, each trace by itself with full logits."""
    logprobs, entropies = [], []
    at = 0
    for group, images in zip(made, grids, strict=True):
        count = sum(t * h * w for t, h, w in images)
        values, grid = pixels.values[at : at + count], torch.tensor(images)
        at += count
        for trace in group.traces:
            ids = torch.from_numpy(np.concatenate((group.prompt, trace.tokens)).astype(np.int64))[None]
            kinds = (ids == IMAGE).int()
            logits = (
                model(input_ids=ids, pixel_values=values, image_grid_thw=grid, mm_token_type_ids=kinds)
                .logits[0]
                .float()
            )
            logp = torch.log_softmax(logits[len(group.prompt) - 1 : -1], dim=-1)
            logprobs.append(logp.gather(1, ids[0, len(group.prompt) :, None])[:, 0])
            entropies.append(-(logp.exp() * logp).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_equals_naive(checkpoint: Path, checkpointing: bool) -> None:
    made, grids, pixels = groups(1)
    policy = Policy.load(checkpoint, torch.device("cpu"), torch.float32, checkpointing)
    policy.freeze([])
    positions = [policy.prompt_positions(g.prompt, images) for g, images in zip(made, grids, strict=True)]
    packed = pack(made, [(0, len(g.traces)) for g in made], policy.image_token, positions)
    scores = policy.score(packed, pixels, 1.0, ())

    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    logprobs, entropies = naive(model, made, grids, pixels)
    torch.testing.assert_close(scores.logprobs, logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.entropies, entropies, atol=1e-5, rtol=0)

    coefficients = torch.linspace(-1, 1, logprobs.numel())
    (scores.logprobs * coefficients + 0.3 * scores.entropies).sum().backward()
    (logprobs * coefficients + 0.3 * entropies).sum().backward()
    theirs = dict(model.named_parameters())
    for name, parameter in policy.model.named_parameters():
        expected = theirs[name].grad
        cosine = torch.nn.functional.cosine_similarity(parameter.grad.flatten(), expected.flatten(), dim=0)
        assert cosine > 0.99999, f"{name}: cosine {cosine}"
        torch.testing.assert_close(parameter.grad, expected, atol=2e-4, rtol=2e-3)


def test_frozen_vision_builds_no_graph(checkpoint: Path) -> None:
    made, grids, pixels = groups(2)
    policy = Policy.load(checkpoint, torch.device("cpu"), torch.float32)
    policy.freeze(["vision", "projector"])
    positions = [policy.prompt_positions(g.prompt, images) for g, images in zip(made, grids, strict=True)]
    packed = pack(made, [(0, len(g.traces)) for g in made], policy.image_token, positions)
    assert not policy.image_features(pixels).requires_grad
    policy.score(packed, pixels, 1.0, ()).logprobs.sum().backward()
    trained = {policy.part_of(n) for n, p in policy.model.named_parameters() if p.grad is not None}
    assert trained == {"language"}
