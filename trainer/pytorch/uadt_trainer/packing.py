"""Lays groups out as one packed row: prompt once, then every response of it.

[prompt A | response A0 | response A1 | ... | prompt B | response B0 | ...]

Every response sees its prompt and itself; positions restart after the prompt.
The row has no padding, and prompt and images are encoded once for all traces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from .types import Group


@dataclass(frozen=True)
class AttentionPlan:
    """Which keys each run of queries attends to.

    Segment s holds the queries [cu_q[s], cu_q[s+1]) of the row and the keys
    key_index[cu_k[s]:cu_k[s+1]] of it. Its last query sees all of its keys, the
    one before all but the last, and so on (causal, aligned at the end).
    """

    cu_q: torch.Tensor  # [S+1] int32
    cu_k: torch.Tensor  # [S+1] int32
    key_index: torch.Tensor  # [K] int64, indices into the row
    max_q: int
    max_k: int


@dataclass(frozen=True)
class Packed:
    """A packed row and the maps from it back to traces."""

    tokens: torch.Tensor  # [N] int64
    positions: torch.Tensor  # [3, N] int64
    plan: AttentionPlan
    predictors: torch.Tensor  # [R] int64: hidden state that predicts each response token
    targets: torch.Tensor  # [R] int64
    lengths: tuple[int, ...]  # [traces] T of each trace, in order; sums to R
    image_slots: torch.Tensor  # [I] int64: prompt positions that take image features
    images: tuple[str, ...]  # digests, in the order of their slots

    def to(self, device: torch.device) -> Packed:
        """Move every tensor to a device."""
        plan = self.plan
        moved = AttentionPlan(
            plan.cu_q.to(device), plan.cu_k.to(device), plan.key_index.to(device), plan.max_q, plan.max_k
        )
        tensors = {
            n: getattr(self, n).to(device) for n in ("tokens", "positions", "predictors", "targets", "image_slots")
        }
        return replace(self, plan=moved, **tensors)


def pack(
    groups: Sequence[Group], spans: Sequence[tuple[int, int]], image_token: int, positions: Sequence[np.ndarray]
) -> Packed:
    """Pack traces [start, stop) of each group into one row.

    `positions[i]` is [3, P] for the prompt of group i. Image features go to
    *prompt* positions only: a policy may emit the pad token itself.
    """
    tokens: list[np.ndarray] = []
    places: list[np.ndarray] = []
    keys: list[np.ndarray] = []
    q_lens: list[int] = []
    k_lens: list[int] = []
    predictors: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    lengths: list[int] = []
    slots: list[np.ndarray] = []
    images: list[str] = []
    at = 0
    for group, (start, stop), prompt_positions in zip(groups, spans, positions, strict=True):
        size = len(group.prompt)
        prompt_range = np.arange(at, at + size)
        tokens.append(group.prompt.astype(np.int64))
        places.append(prompt_positions.astype(np.int64))
        keys.append(prompt_range)
        q_lens.append(size)
        k_lens.append(size)
        slots.append(at + np.flatnonzero(group.prompt == image_token))
        images.extend(group.images)
        at += size
        after = int(prompt_positions.max()) + 1
        for trace in group.traces[start:stop]:
            count = len(trace.tokens)
            lengths.append(count)
            if count == 0:
                continue
            own = np.arange(at, at + count)
            tokens.append(trace.tokens.astype(np.int64))
            places.append(np.broadcast_to(after + np.arange(count), (3, count)))
            keys.extend((prompt_range, own))
            q_lens.append(count)
            k_lens.append(size + count)
            # The first token is predicted by the prompt's last state, each other by its predecessor.
            predictors.append(np.concatenate((prompt_range[-1:], own[:-1])))
            targets.append(trace.tokens.astype(np.int64))
            at += count
    empty = np.zeros(0, dtype=np.int64)
    return Packed(
        tokens=torch.from_numpy(np.concatenate(tokens)),
        positions=torch.from_numpy(np.concatenate(places, axis=1)),
        plan=AttentionPlan(
            cu_q=_cumulative(q_lens),
            cu_k=_cumulative(k_lens),
            key_index=torch.from_numpy(np.concatenate(keys)),
            max_q=max(q_lens),
            max_k=max(k_lens),
        ),
        predictors=torch.from_numpy(np.concatenate((empty, *predictors))),
        targets=torch.from_numpy(np.concatenate((empty, *targets))),
        lengths=tuple(lengths),
        image_slots=torch.from_numpy(np.concatenate(slots)),
        images=tuple(images),
    )


def _cumulative(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
