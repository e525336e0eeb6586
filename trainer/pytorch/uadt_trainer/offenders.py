"""Which traces are to blame for a loss or gradient that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from .model import TokenScores
from .shard import Loaded, MicroBatch, Turn


@torch.no_grad()
def offenders(
    loaded: Loaded,
    turns: Sequence[Turn],
    score: Callable[[Turn], TokenScores],
    advantages: Sequence[Sequence[np.ndarray]],
) -> list[tuple[str, int]]:
    """Return (group, index) of the traces known to be at fault; none when only the weights or a sum are.

    The weights are still those of the update that was refused, so what the model says of each trace is
    asked for again. advantages is [Q][G] of [1] or [T].
    """
    found = set()
    for turn in turns:
        scores = score(turn)  # every rank makes every turn
        if turn.micro is not None:
            found |= _in_micro(turn.micro, scores)
    for index, rows in enumerate(advantages):
        found |= {(index, i) for i, values in enumerate(rows) if not np.isfinite(values).all()}
    return [(loaded.shard.groups[g].id, i) for g, i in sorted(found)]


def _in_micro(micro: MicroBatch, scores: TokenScores) -> set[tuple[int, int]]:
    bad = ~(torch.isfinite(scores.logprobs) & torch.isfinite(scores.entropies))
    for values in (micro.old, micro.reference):
        if values is not None:
            bad |= ~torch.isfinite(values)
    return {micro.traces[row] for row in micro.rows[bad].unique().tolist()}
