"""Token losses, KL and aggregation. Formulas are those of docs/grpo.md.

All inputs are flat over the response tokens of a micro-batch, [R] float32,
with `rows` [R] giving the trace each token belongs to. Sums are over the
micro-batch; denominators are those of the whole update, so that micro-batches
and ranks add up to the same gradient in any split.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .types import Denominators, StepOptions


@dataclass(frozen=True)
class TokenData:
    """What the loss needs of each response token, all [R], detached."""

    mask: torch.Tensor  # bool
    rows: torch.Tensor  # int64 trace index
    num_rows: int
    advantages: torch.Tensor
    old: torch.Tensor  # log-probability at the batch's start, nats
    reference: torch.Tensor | None
    rollout: torch.Tensor | None  # of the engine that sampled
    entropy_kept: torch.Tensor | None  # bool: tokens above the entropy quantile
    covariance_hit: torch.Tensor | None  # bool: tokens chosen by Clip-Cov or KL-Cov


@dataclass(frozen=True)
class LossResult:
    """The differentiable loss of a micro-batch and its statistics (sums over tokens)."""

    loss: torch.Tensor  # scalar: this micro-batch's share of the update's loss
    sums: dict[str, float]
    maxima: dict[str, float]


def correction_weights(data: TokenData, options: StepOptions) -> torch.Tensor | None:
    """Return w = exp(old - rollout) [R], detached, per token or per trace; None without rollout."""
    if data.rollout is None:
        return None
    gap = torch.where(data.mask, data.old - data.rollout, torch.zeros_like(data.old))
    if options.correction_level == "sequence":
        gap = torch.zeros(data.num_rows, device=gap.device).index_add_(0, data.rows, gap)[data.rows]
    return torch.exp(gap.clamp(-20, 20))


def _corrected(data: TokenData, options: StepOptions, weights: torch.Tensor | None) -> torch.Tensor:
    if weights is None or not options.correction_level:
        return data.advantages
    if options.correction_mode == "mask":
        inside = (weights <= options.correction_upper) & (weights >= options.correction_lower)
        return data.advantages * weights * inside
    return data.advantages * weights.clamp(max=options.correction_upper)


def policy_loss(
    lp: torch.Tensor, data: TokenData, advantages: torch.Tensor, options: StepOptions
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the token loss [R] and which bound acted on which token."""
    if options.loss == "nll":
        return -lp, {}
    log_ratio = lp - data.old
    if options.loss == "gspo":
        log_ratio = _sequence_ratio(lp, log_ratio, data).clamp(max=10)
    else:
        log_ratio = log_ratio.clamp(-20, 20)
    ratio = torch.exp(log_ratio)
    low, high = 1 - options.clip_low, 1 + options.clip_high
    clipped = ratio.clamp(low, high)
    if options.loss == "cispo":
        acted = {"clip/low": ratio < low, "clip/high": ratio > high}
        return -clipped.detach() * advantages * lp, acted
    unclipped_loss, clipped_loss = -advantages * ratio, -advantages * clipped
    loss = torch.maximum(unclipped_loss, clipped_loss)
    acted = {
        "clip/low": (clipped_loss > unclipped_loss) & (advantages < 0),
        "clip/high": (clipped_loss > unclipped_loss) & (advantages > 0),
    }
    if options.dual_clip:
        bound = -advantages * options.dual_clip
        acted["clip/dual"] = (advantages < 0) & (loss > bound)
        loss = torch.where(advantages < 0, torch.minimum(loss, bound), loss)
    return loss, acted


def _sequence_ratio(lp: torch.Tensor, log_ratio: torch.Tensor, data: TokenData) -> torch.Tensor:
    """Mean log-ratio of the trace in value, the token's own log-probability in gradient."""
    mask = data.mask.to(log_ratio.dtype)
    zeros = torch.zeros(data.num_rows, device=lp.device, dtype=log_ratio.dtype)
    total = zeros.index_add(0, data.rows, log_ratio.detach() * mask)
    count = zeros.index_add(0, data.rows, mask).clamp_min(1)
    return lp - lp.detach() + (total / count)[data.rows]


def kl_estimate(lp: torch.Tensor, reference: torch.Tensor, kind: str, clamp: bool) -> torch.Tensor:
    """Return the estimate of KL(policy || reference) [R], nats."""
    d = reference - lp
    if clamp:
        d = d.clamp(-20, 20)
    if kind == "k1":
        value = -d
    elif kind == "k2":
        value = d * d / 2
    else:
        # expm1 keeps the digits that exp(d) - 1 - d loses where d is small.
        value = torch.expm1(d) - d
    return value.clamp(-10, 10) if clamp else value


def token_weights(mask: torch.Tensor, rows: torch.Tensor, num_rows: int, d: Denominators, how: str) -> torch.Tensor:
    """Return the weight [R] of each token in the update's loss: aggregation as a weighted sum."""
    weights = mask.to(torch.float32)
    if how == "token_mean":
        return weights / max(d.tokens, 1)
    if how == "seq_mean_token_sum":
        return weights / max(d.sequences, 1)
    if how == "seq_mean_token_sum_norm":
        return weights / (max(d.sequences, 1) * max(d.max_tokens, 1))
    count = torch.zeros(num_rows, device=mask.device).index_add_(0, rows, weights).clamp_min(1)
    return weights / (count[rows] * max(d.sequences, 1))


def update_loss(lp: torch.Tensor, entropy: torch.Tensor, data: TokenData, options: StepOptions) -> LossResult:
    """Return the loss of a micro-batch. lp and entropy are [R] and carry gradients."""
    how = "seq_mean_token_mean" if options.loss == "gspo" else options.aggregation
    weights = token_weights(data.mask, data.rows, data.num_rows, options.denominators, how)
    correction = correction_weights(data, options)
    tokens, acted = policy_loss(lp, data, _corrected(data, options, correction), options)
    if data.entropy_kept is not None:
        tokens = tokens * data.entropy_kept
    if data.covariance_hit is not None:
        if options.covariance_kind == "clip":
            tokens = torch.where(data.covariance_hit, tokens.detach(), tokens)
        else:
            tokens = tokens + options.covariance_coef * data.covariance_hit * (data.old - lp).abs()
    # A token outside the mask may hold anything: where() keeps its inf or NaN out, a product would not.
    policy = (torch.where(data.mask, tokens, torch.zeros_like(tokens)) * weights).sum()
    loss = policy
    sums = {"policy_loss": float(policy.detach())}
    if options.kl and data.reference is not None:
        estimate = kl_estimate(lp, data.reference, options.kl, options.kl_clamp)
        kl = options.kl_coef * (torch.where(data.mask, estimate, torch.zeros_like(estimate)) * weights).sum()
        loss = loss + kl
        sums["kl_loss"] = float(kl.detach())
        sums["kl/reference"] = _masked_sum(estimate, data.mask)
    if options.entropy_bonus:
        loss = (
            loss - options.entropy_bonus * (torch.where(data.mask, entropy, torch.zeros_like(entropy)) * weights).sum()
        )
    sums["entropy"] = _masked_sum(entropy, data.mask)
    if options.loss != "nll":
        sums["kl/behaviour"] = _masked_sum(data.old - lp, data.mask)
    for name, hit in acted.items():
        sums[name] = _masked_sum(hit, data.mask)
    maxima = _gap(correction, data, options, sums)
    return LossResult(loss=loss, sums=sums, maxima=maxima)


def _gap(
    weights: torch.Tensor | None, data: TokenData, options: StepOptions, sums: dict[str, float]
) -> dict[str, float]:
    if weights is None or data.rollout is None:
        return {}
    sums["rollout_gap/w"] = _masked_sum(weights, data.mask)
    sums["rollout_gap/truncated"] = _masked_sum(weights > options.correction_upper, data.mask)
    sums["rollout_gap/kl"] = _masked_sum(data.rollout - data.old, data.mask)
    masked = torch.where(data.mask, weights, torch.zeros_like(weights))
    return {"rollout_gap/w_max": float(masked.max()) if masked.numel() else 0.0}


def _masked_sum(values: torch.Tensor, mask: torch.Tensor) -> float:
    return float(torch.where(mask, values.detach().float(), torch.zeros((), device=mask.device)).sum())
