"""The losses against the vectors that Go runs too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from uadt_trainer.loss import TokenData, update_loss
from uadt_trainer.selection import top_covariance, top_entropy
from uadt_trainer.types import Denominators, StepOptions

VECTORS = Path(__file__).resolve().parents[2] / "trainertest" / "testdata" / "loss_vectors.json"
CASES = json.loads(VECTORS.read_text())


def joined(traces: list[dict], name: str, absent: float) -> torch.Tensor | None:
    if all(t[name] is None for t in traces):
        return None
    rows = [t[name] if t[name] is not None else [absent] * len(t["lp"]) for t in traces]
    return torch.tensor([x for row in rows for x in row], dtype=torch.float64)


def step_options(o: dict, want: dict) -> StepOptions:
    known = {n: o[n] for n in o if n != "max_tokens"}
    return StepOptions(
        **known, denominators=Denominators(want["tokens"], want["sequences"], o["max_tokens"]), learning_rate=0.0
    )


@pytest.mark.parametrize("index", range(len(CASES)))
def test_vectors(index: int) -> None:
    case = CASES[index]
    traces, want = case["traces"], case["want"]
    lengths = [len(t["lp"]) for t in traces]
    a = [t["advantages"] * (n if len(t["advantages"]) == 1 else 1) for t, n in zip(traces, lengths, strict=True)]
    lp, entropy = joined(traces, "lp", 0).requires_grad_(), joined(traces, "entropy", 0).requires_grad_()
    kept, hit = joined(traces, "kept", 1), joined(traces, "covariance", 0)
    data = TokenData(
        mask=joined(traces, "mask", 1).bool(),
        rows=torch.repeat_interleave(torch.arange(len(traces)), torch.tensor(lengths)),
        num_rows=len(traces),
        advantages=torch.tensor([x for row in a for x in row], dtype=torch.float64),
        old=joined(traces, "old", 0),
        reference=joined(traces, "reference", 0),
        rollout=joined(traces, "rollout", float("nan")),
        entropy_kept=None if kept is None else kept.bool(),
        covariance_hit=None if hit is None else hit.bool(),
    )
    result = update_loss(lp, entropy, data, step_options(case["options"], want))
    result.loss.backward()
    for ours, theirs in ((lp, want["grad_lp"]), (entropy, want["grad_entropy"])):
        expected = torch.tensor([x for row in theirs for x in row], dtype=torch.float64)
        grad = ours.grad if ours.grad is not None else torch.zeros_like(ours)
        torch.testing.assert_close(grad, expected, atol=1e-12, rtol=1e-12)
    assert result.loss.item() == pytest.approx(want["policy"] + want["kl"] + want["bonus"], rel=1e-11)
    sums = {n: float(v) for n, v in result.sums.items()}
    pairs = {"policy": "policy", "entropy": "entropy_sum", "kl": "kl", "reference": "kl_sum", "bonus": "bonus"}
    for name, theirs in pairs.items():
        assert sums.get(name, 0.0) == pytest.approx(want[theirs], rel=1e-11, abs=1e-12), name
    for name in ("gap_w", "gap_outside", "gap_difference"):
        assert sums.get(name, 0.0) == pytest.approx(want[name], rel=1e-11, abs=1e-11), name
    assert float(result.maxima.get("gap_w_max", 0.0)) == pytest.approx(want["gap_max"], rel=1e-11)


def test_selections_count_as_go_does() -> None:
    entropy = np.array([0.5, 3.0, 1.0, 3.0, 9.0, 0.1])
    mask = np.array([1, 1, 1, 1, 0, 1], dtype=bool)
    order = np.array([5, 4, 3, 2, 1, 0])
    # ceil(0.4*5) = 2 of the five masked-in; 9.0 is outside the mask.
    assert top_entropy(entropy, mask, order, 0.4).tolist() == [False, True, False, True, False, False]
    # ceil(0.2*5) = 1: of the two equal values the earlier in batch order.
    assert top_entropy(entropy, mask, order, 0.2).tolist() == [False, False, False, True, False, False]
    assert top_entropy(np.arange(15.0), np.ones(15, bool), np.arange(15), 0.2).sum() == 3
    assert top_entropy(entropy, mask, order, 0) is None
    assert top_entropy(entropy, mask, order, 1) is None
    old, a = np.array([-1.0, -2.0, -3.0, -0.5, -9.0, -1.0]), np.array([1.0, -0.5, 1.0, -1.0, 5.0, 0.0])
    covariance = (old - old[mask].mean()) * (a - a[mask].mean())
    best = max(np.flatnonzero(mask), key=lambda i: covariance[i])
    assert np.flatnonzero(top_covariance(old, a, mask, order, 0.39)).tolist() == [best]
    assert top_covariance(old, a, mask, order, 0.01).sum() == 1
    assert top_covariance(old, a, np.zeros(6, bool), order, 0.5).sum() == 0
