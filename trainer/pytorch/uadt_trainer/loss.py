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
    rollout: torch.Tensor | None  # of the engine that sampled; NaN for traces that have none
    entropy_kept: torch.Tensor | None  # bool: tokens above the entropy quantile
    covariance_hit: torch.Tensor | None  # bool: tokens chosen by Clip-Cov or KL-Cov


@dataclass(frozen=True)
class LossResult:
    """The differentiable loss of a micro-batch and its statistics, scalars on the device."""

    loss: torch.Tensor  # this micro-batch's share of the update's loss
    sums: dict[str, torch.Tensor]  # over tokens; "policy" and "kl" are shares of the loss
    maxima: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Gap:
    """The engine that sampled against the one that trains, [R], detached."""

    present: torch.Tensor  # bool: masked-in tokens of traces that have rollout log-probabilities
    weights: torch.Tensor  # w = exp(old - rollout) of token or trace, 1 where not present
    outside: torch.Tensor  # bool: beyond the bounds
    factors: torch.Tensor  # what the advantage is multiplied by


def rollout_gap(data: TokenData, options: StepOptions) -> Gap | None:
    """Return the gap and the correction factors; None without rollout log-probabilities."""
    if data.rollout is None or options.loss == "nll":
        return None
    present = data.mask & ~torch.isnan(data.rollout)
    exponent = torch.where(present, data.old - data.rollout, torch.zeros_like(data.old))
    if options.correction_level == "sequence":
        sums = torch.zeros(data.num_rows, device=exponent.device, dtype=exponent.dtype)
        exponent = sums.index_add_(0, data.rows, exponent)[data.rows]
    ones = torch.ones_like(exponent)
    weights = torch.where(present, torch.exp(exponent.clamp(-20, 20)), ones)
    outside = weights > options.correction_upper
    if options.correction_mode == "mask":
        outside = outside | (weights < options.correction_lower)
    outside = outside & present
    if not options.correction_level:
        return Gap(present, weights, outside, ones)
    factors = weights.clamp(max=options.correction_upper)
    if options.correction_mode == "mask":
        factors = torch.where(outside, torch.zeros_like(weights), factors)
    return Gap(present, weights, outside, factors)


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
        acted = {"low": ratio < low, "high": ratio > high}
        return -clipped.detach() * advantages * lp, acted
    unclipped_loss, clipped_loss = -advantages * ratio, -advantages * clipped
    loss = torch.maximum(unclipped_loss, clipped_loss)
    acted = {
        "low": (clipped_loss > unclipped_loss) & (advantages < 0),
        "high": (clipped_loss > unclipped_loss) & (advantages > 0),
    }
    if options.dual_clip and options.loss == "ppo":
        bound = -advantages * options.dual_clip
        acted["dual"] = (advantages < 0) & (loss > bound)
        loss = torch.where(advantages < 0, torch.minimum(loss, bound), loss)
    return loss, acted


def _sequence_ratio(lp: torch.Tensor, log_ratio: torch.Tensor, data: TokenData) -> torch.Tensor:
    """Mean log-ratio of the trace in value, the token's own log-probability in gradient."""
    mask = data.mask.to(log_ratio.dtype)
    zeros = torch.zeros(data.num_rows, device=lp.device, dtype=log_ratio.dtype)
    total = zeros.index_add(0, data.rows, log_ratio.detach() * mask)
    count = zeros.index_add(0, data.rows, mask).clamp_min(1)
    return lp - lp.detach() + (total / count)[data.rows]


def kl_estimate(lp: torch.Tensor, reference: torch.Tensor, kind: str, clamp: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the estimate of KL(policy || reference) [R], nats, and where a clamp acted."""
    d = reference - lp
    clamped = torch.zeros_like(d, dtype=torch.bool)
    if clamp:
        clamped = d.abs() > 20
        d = d.clamp(-20, 20)
    if kind == "k1":
        value = -d
    elif kind == "k2":
        value = d * d / 2
    else:
        # expm1 keeps the digits that exp(d) - 1 - d loses where d is small.
        value = torch.expm1(d) - d
    if not clamp:
        return value, clamped
    return value.clamp(-10, 10), clamped | (value.abs() > 10)


def token_weights(
    mask: torch.Tensor,
    rows: torch.Tensor,
    num_rows: int,
    d: Denominators,
    how: str,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return the weight [R] of each token in the update's loss: aggregation as a weighted sum."""
    weights = mask.to(dtype)
    if how == "token_mean":
        return weights / max(d.tokens, 1)
    if how == "seq_mean_token_sum":
        return weights / max(d.sequences, 1)
    if how == "seq_mean_token_sum_norm":
        return weights / (max(d.sequences, 1) * max(d.max_tokens, 1))
    count = torch.zeros(num_rows, device=mask.device, dtype=dtype).index_add_(0, rows, weights).clamp_min(1)
    return weights / (count[rows] * max(d.sequences, 1))


def update_loss(lp: torch.Tensor, entropy: torch.Tensor, data: TokenData, options: StepOptions) -> LossResult:
    """Return the loss of a micro-batch. lp and entropy are [R] and carry gradients."""
    how = "seq_mean_token_mean" if options.loss == "gspo" else options.aggregation
    weights = token_weights(data.mask, data.rows, data.num_rows, options.denominators, how, lp.dtype)
    gap = rollout_gap(data, options)
    advantages = data.advantages if gap is None else data.advantages * gap.factors
    tokens, acted = policy_loss(lp, data, advantages, options)
    if data.entropy_kept is not None:
        tokens = torch.where(data.entropy_kept, tokens, torch.zeros_like(tokens))
    if data.covariance_hit is not None:
        if options.covariance_kind == "clip":
            tokens = torch.where(data.covariance_hit, tokens.detach(), tokens)
        else:
            penalty = options.covariance_coef * (lp - data.old).abs()
            tokens = tokens + torch.where(data.covariance_hit, penalty, torch.zeros_like(penalty))
    policy = _weighted(tokens, data.mask, weights)
    loss = policy
    sums = {"policy": policy.detach()}
    if options.kl and data.reference is not None:
        estimate, clamped = kl_estimate(lp, data.reference, options.kl, options.kl_clamp)
        kl = options.kl_coef * _weighted(estimate, data.mask, weights)
        loss = loss + kl
        sums |= {"kl": kl.detach(), "reference": _sum(estimate, data.mask), "clamped": _sum(clamped, data.mask)}
    if options.entropy_bonus:
        bonus = -options.entropy_bonus * _weighted(entropy, data.mask, weights)
        loss = loss + bonus
        sums["bonus"] = bonus.detach()
    sums["entropy"] = _sum(entropy, data.mask)
    if options.loss != "nll":
        sums["behaviour"] = _sum(data.old - lp, data.mask)
    for name, hit in acted.items():
        sums[name] = _sum(hit, data.mask)
    if gap is None or data.rollout is None:
        return LossResult(loss, sums, {})
    sums["gap_tokens"] = _sum(gap.present, gap.present)
    sums["gap_w"] = _sum(gap.weights, gap.present)
    sums["gap_outside"] = _sum(gap.outside, gap.present)
    sums["gap_difference"] = _sum(data.rollout - data.old, gap.present)
    largest = torch.where(gap.present, gap.weights, torch.zeros_like(gap.weights))
    maxima = {"gap_w_max": largest.max()} if largest.numel() else {}
    return LossResult(loss, sums, maxima)


def _weighted(values: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    # A token outside the mask may hold anything: where() keeps its inf or NaN out, a product would not.
    return (torch.where(mask, values, torch.zeros_like(values)) * weights).sum()


def _sum(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum over the mask in float64: counts and means of 1e7 tokens stay exact enough."""
    return torch.where(mask, values.detach().double(), 0.0).sum()
