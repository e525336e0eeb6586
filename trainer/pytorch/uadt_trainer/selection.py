"""Choosing tokens of a whole update: entropy quantile, Clip-Cov and KL-Cov.

These look at all micro-batches together, so they are made from the scores
before the first backward pass.
"""

from __future__ import annotations

import torch


def top_entropy(entropy: torch.Tensor, mask: torch.Tensor, share: float) -> torch.Tensor | None:
    """Return which tokens [R] keep their gradient: the share with the highest entropy; None keeps all."""
    if share <= 0 or share >= 1:
        return None
    kept = torch.zeros_like(mask)
    inside = torch.nonzero(mask).flatten()
    count = max(1, round(share * inside.numel()))
    order = torch.argsort(entropy[inside], descending=True, stable=True)[:count]
    kept[inside[order]] = True
    return kept


def top_covariance(
    old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, share: float
) -> torch.Tensor | None:
    """Return the tokens [R] with the largest (lp - mean lp)(A - mean A) (arXiv 2505.22617)."""
    if share <= 0:
        return None
    hit = torch.zeros_like(mask)
    inside = torch.nonzero(mask).flatten()
    lp, a = old[inside], advantages[inside]
    covariance = (lp - lp.mean()) * (a - a.mean())
    count = max(1, round(share * inside.numel()))
    order = torch.argsort(covariance, descending=True, stable=True)[:count]
    hit[inside[order]] = True
    return hit
