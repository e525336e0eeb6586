"""Choosing tokens of a whole update: entropy quantile, Clip-Cov and KL-Cov.

These look at all micro-batches and ranks together, so they are made from the
scores before the first backward pass. All arrays are flat over the tokens of
the update, [N]; `order` is the batch order of each token (group, trace, token),
which decides between equal values, so that any split chooses the same tokens.
"""

from __future__ import annotations

import math

import numpy as np


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
