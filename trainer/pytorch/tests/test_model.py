"""Packed rows against the naive way: every trace by itself through transformers' own forward."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PAD, VISION_END, VISION_START
from torch._dynamo.utils import counters
from transformers import AutoModelForImageTextToText

from uadt_trainer import layers
from uadt_trainer.model import Pixels, Policy
from uadt_trainer.packing import pack
from uadt_trainer.types import Group, Trace

IMAGE, START, END = PAD, VISION_START, VISION_END


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


def test_a_row_takes_nothing_from_the_host(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy to a GPU waits for all that is queued there: of what a row needs none is left once one like it ran."""
    made, grids, pixels = groups(3)
    policy = Policy.load(checkpoint, torch.device("cpu"), torch.float32)
    positions = [policy.prompt_positions(g.prompt, images) for g, images in zip(made, grids, strict=True)]
    packed = pack(made, [(0, len(g.traces)) for g in made], policy.image_token, positions)
    first = policy.score(packed, pixels, 1.0, (PAD, 7))

    def copies(*_: object, **__: object) -> None:
        pytest.fail("a tensor is made from what is on the host")

    for name in ("tensor", "as_tensor", "from_numpy"):
        monkeypatch.setattr(torch, name, copies)
    again = policy.score(packed, pixels, 1.0, (PAD, 7))
    again.logprobs.sum().backward()
    assert torch.equal(first.logprobs, again.logprobs)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_equal_plain_ones(
    checkpoint: Path, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU compiles, through the same capture and the same backward graph, without its code generation."""
    made, grids, pixels = groups(1)
    plain = Policy.load(checkpoint, torch.device("cpu"), torch.float32, checkpointing)
    plain.freeze([])
    positions = [plain.prompt_positions(g.prompt, images) for g, images in zip(made, grids, strict=True)]
    packed = pack(made, [(0, len(g.traces)) for g in made], plain.image_token, positions)

    def run(policy: Policy) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        policy.model.zero_grad()
        scores = policy.score(packed, pixels, 1.0, ())
        coefficients = torch.linspace(-1, 1, scores.logprobs.numel())
        (scores.logprobs * coefficients + 0.3 * scores.entropies).sum().backward()
        return scores.logprobs.detach(), {n: p.grad.clone() for n, p in policy.model.named_parameters()}

    logprobs, gradients = run(plain)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    layers._compiled.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    # The fall-back for attention on a CPU has a shape that depends on data; a GPU's kernel has not.
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        stack = layers.Stack(compiled=True, checkpointing=checkpointing)
        compiled, found = run(Policy(plain.model, plain.device, stack))
    layers._compiled.cache_clear()
    assert counters["stats"]["unique_graphs"] >= 2  # of text layers and of vision blocks
    torch.testing.assert_close(compiled, logprobs, atol=1e-5, rtol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5 * float(gradient.norm()), rtol=0, msg=name)
