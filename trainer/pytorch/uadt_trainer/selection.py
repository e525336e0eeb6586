"""Choosing tokens of a whole update: entropy quantile, Clip-Cov and KL-Cov.

These look at all micro-batches and ranks together, so they are made from the
scores before the first backward pass. All arrays are flat over the tokens of
the update, [N]; `order` is the batch order of each token (group, trace, token),
which decides between equal values, so that any split chooses the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from .ranks import Ranks
from .shard import MicroBatch
from .types import StepOptions


def top_entropy(entropy: np.ndarray, mask: np.ndarray, order: np.ndarray, share: float) -> np.ndarray | None:
    """Return which tokens [N] keep their loss: ceil(share*n) of highest entropy; None keeps all."""
    if share <= 0 or share >= 1:
        return None
    # The product is rounded to a billionth first: 0.2*15 is 3.0000000000000004.
    count = math.ceil(round(share * int(mask.sum()), 9))
    return _largest(entropy.astype(np.float64), mask, order, count)


def top_covariance(
    old: np.ndarray, advantages: np.ndarray, mask: np.ndarray, order: np.ndarray, share: float
) -> np.ndarray:
    """Return the max(1, floor(share*n)) tokens [N] of largest (lp - mean lp)(A - mean A) (arXiv 2505.22617)."""
    if not mask.any():
        return np.zeros_like(mask)
    lp, a = old.astype(np.float64), advantages.astype(np.float64)
    covariance = (lp - lp[mask].mean()) * (a - a[mask].mean())
    return _largest(covariance, mask, order, max(1, math.floor(round(share * int(mask.sum()), 9))))


def _largest(values: np.ndarray, mask: np.ndarray, order: np.ndarray, count: int) -> np.ndarray:
    inside = np.flatnonzero(mask)
    ranked = inside[np.lexsort((order[inside], -values[inside]))]
    out = np.zeros_like(mask)
    out[ranked[:count]] = True
    return out


def select(
    ranks: Ranks, micros: Sequence[MicroBatch], values: Sequence[torch.Tensor], options: StepOptions
) -> tuple[list[torch.Tensor | None], list[torch.Tensor | None]]:
    """Choose tokens over the whole update, all ranks together, then cut the choice into micro-batches."""
    nothing: list[torch.Tensor | None] = [None] * len(micros)
    quantile = 0 < options.entropy_quantile < 1
    if not (quantile or options.covariance_kind):
        return nothing, nothing
    columns = [
        _column([m.mask for m in micros]),
        _column([m.entropy for m in micros if m.entropy is not None]),
        _column([m.old for m in micros if m.old is not None]),
        _column(values),
        *np.concatenate([np.zeros((0, 3)), *(m.order for m in micros)]).T,
    ]
    every = [ranks.gather(c) for c in columns]
    start = sum(len(c) for c in every[0][: ranks.rank])
    mask, entropy, old, advantages, *place = (np.concatenate(c) for c in every)
    order = np.empty(len(mask), dtype=np.int64)
    order[np.lexsort(place[::-1])] = np.arange(len(mask))
    chosen = [nothing, nothing]
    if quantile:
        chosen[0] = _cut(top_entropy(entropy, mask > 0, order, options.entropy_quantile), start, micros)
    if options.covariance_kind:
        hit = top_covariance(old, advantages, mask > 0, order, options.covariance_share)
        chosen[1] = _cut(hit, start, micros)
    return chosen[0], chosen[1]


def _column(parts: Sequence[torch.Tensor]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(p.double().cpu().numpy() for p in parts)])


def _cut(chosen: np.ndarray | None, start: int, micros: Sequence[MicroBatch]) -> list[torch.Tensor | None]:
    if chosen is None:
        return [None] * len(micros)
    out: list[torch.Tensor | None] = []
    for micro in micros:
        stop = start + micro.mask.numel()
        out.append(torch.from_numpy(chosen[start:stop].copy()).to(micro.mask.device))
        start = stop
    return out
