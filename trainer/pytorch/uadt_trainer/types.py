"""The vocabulary of the trainer: what crosses the wire, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Trace:
    """One response of a group."""

    tokens: np.ndarray  # [T] int32, end of sequence included
    mask: np.ndarray  # [T] bool: False leaves the token out of loss and denominators
    rollout_logprobs: np.ndarray | None = None  # [T] float32 nats; None for align and sft


@dataclass(frozen=True)
class Group:
    """One prompt and the traces that share it."""

    id: str
    prompt: np.ndarray  # [P] int32, after image expansion
    images: tuple[str, ...]  # SHA-256 digests, in the order of their pads
    traces: tuple[Trace, ...]  # [G]
    index: int = 0  # place of the group in the whole batch, all ranks together


@dataclass(frozen=True)
class Part:
    """A run of traces of one group that are processed together."""

    micro_batch: int
    group: int  # index into the shard's groups
    start: int  # traces [start, stop)
    stop: int


@dataclass(frozen=True)
class Shard:
    """One rank's share of the data of one optimizer update."""

    step: int
    groups: tuple[Group, ...]
    parts: tuple[Part, ...]
    micro_batches: int  # the same on every rank; empty ones are allowed


@dataclass(frozen=True)
class Denominators:
    """Sums over the whole update, all ranks together."""

    tokens: int
    sequences: int
    max_tokens: int


@dataclass(frozen=True)
class StepOptions:
    """Everything about one optimizer update that is not data."""

    loss: str  # ppo, gspo, cispo or nll
    denominators: Denominators
    learning_rate: float
    aggregation: str = "token_mean"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0  # 0 is none
    kl: str = ""  # "", k1, k2 or k3
    kl_coef: float = 0.0
    kl_clamp: bool = False
    correction_level: str = ""  # "", token or sequence
    correction_mode: str = "truncate"  # or mask
    correction_lower: float = 0.0
    correction_upper: float = 2.0
    covariance_kind: str = ""  # "", clip or kl
    covariance_share: float = 0.0
    covariance_coef: float = 0.0
    entropy_bonus: float = 0.0
    entropy_quantile: float = 0.0  # 0 or 1 keeps every token
    grad_clip: float = 0.0
    temperature: float = 1.0
    banned: tuple[int, ...] = ()


@dataclass
class Report:
    """What one optimizer update measured on one rank; sums are added over ranks by the coordinator.

    Names of sums: policy, kl, bonus (shares of the loss), entropy, behaviour, reference, clamped, low,
    high, dual, gap_tokens, gap_w, gap_outside, gap_difference; of maxima: gap_w_max.
    """

    step: int
    loss: float = 0.0
    grad_norm: float = 0.0  # over all ranks, before clipping
    tokens: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # by phase
    peak_bytes: int = 0
