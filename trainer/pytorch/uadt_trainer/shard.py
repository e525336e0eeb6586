"""From a shard to packed rows on the device, and back from flat tokens to traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from .errors import CommandError, GroupError
from .images import ImageError, ImageSource
from .model import Pixels, Policy
from .packing import Packed, pack
from .types import Group, Part, Shard, Trace


@dataclass
class MicroBatch:
    """A packed row of the shard and what the loss needs of its tokens, flat [R]."""

    packed: Packed
    pixels: Pixels | None
    traces: list[tuple[int, int]]  # (group of the shard, trace) of each row
    mask: torch.Tensor  # bool
    rows: torch.Tensor  # int64
    rollout: torch.Tensor | None  # NaN where a trace has none
    order: np.ndarray  # [R, 3] int64: (group of the batch, trace, token)
    index: int  # of the plan, in which other ranks have a micro-batch of this index too, or an empty one
    old: torch.Tensor | None = None
    reference: torch.Tensor | None = None
    entropy: torch.Tensor | None = None


@dataclass(frozen=True)
class Turn:
    """One forward pass, and perhaps a backward pass, that all ranks make together."""

    packed: Packed
    pixels: Pixels | None
    micro: MicroBatch | None  # none: the row is a filler, only other ranks have something to do
    blank: Pixels | None  # an image that counts for nothing, where only other ranks have images


@dataclass
class Loaded:
    """A shard between load and step."""

    shard: Shard
    micro_batches: list[MicroBatch] = field(default_factory=list)
    scored_with: tuple[float, tuple[int, ...]] | None = None  # temperature and bans


class Flattener:
    """Lays out shards for one model."""

    def __init__(self, policy: Policy, images: ImageSource, device: torch.device) -> None:
        self._policy, self._images, self._device = policy, images, device

    def lay_out(self, shard: Shard) -> Loaded:
        """Check every group and pack every micro-batch that is not empty."""
        self._check_parts(shard)
        positions = []
        for group in shard.groups:
            grids = self._check(group)
            positions.append(self._policy.prompt_positions(group.prompt, grids))
        loaded = Loaded(shard)
        for index in range(shard.micro_batches):
            parts = [p for p in shard.parts if p.micro_batch == index]
            if parts:
                loaded.micro_batches.append(self._pack(shard, parts, positions, index))
        return loaded

    def _pack(self, shard: Shard, parts: Sequence[Part], positions: Sequence[np.ndarray], index: int) -> MicroBatch:
        packed = pack(
            [shard.groups[p.group] for p in parts],
            [(p.start, p.stop) for p in parts],
            self._policy.image_token,
            [positions[p.group] for p in parts],
        )
        picked = [(p.group, i) for p in parts for i in range(p.start, p.stop)]
        traces = [shard.groups[g].traces[i] for g, i in picked]
        rollout = None
        if any(t.rollout_logprobs is not None for t in traces):
            rollout = self.flat([_sampled(t) for t in traces])
        lengths = np.array(packed.lengths, dtype=np.int64)
        places = np.array([(shard.groups[g].index, i) for g, i in picked], dtype=np.int64).reshape(-1, 2)
        tokens = np.concatenate([np.arange(n, dtype=np.int64) for n in lengths])
        return MicroBatch(
            packed=packed.to(self._device),
            pixels=self._pixels(packed.images),
            traces=picked,
            mask=self.flat([t.mask for t in traces], torch.bool),
            rows=torch.from_numpy(np.repeat(np.arange(len(picked)), lengths)).to(self._device),
            rollout=rollout,
            order=np.column_stack((np.repeat(places, lengths, axis=0), tokens)),
            index=index,
        )

    def turns(self, loaded: Loaded, busy: np.ndarray | None, banned: Sequence[int]) -> list[Turn]:
        """Return the turns of an update.

        `busy` [micro-batches, 2] says in which of them any rank has a row, and images; without it no rank
        waits for another, and there is nothing to fill in.
        """
        if busy is None:
            return [Turn(m.packed, m.pixels, m, None) for m in loaded.micro_batches]
        own = {m.index: m for m in loaded.micro_batches}
        out = []
        for index, (row, images) in enumerate(busy):
            micro = own.get(index)
            blank = self._policy.blank() if images and (micro is None or micro.pixels is None) else None
            if micro is not None:
                out.append(Turn(micro.packed, micro.pixels, micro, blank))
            elif row:
                out.append(Turn(self._filler(banned), None, None, blank))
        return out

    def _filler(self, banned: Sequence[int]) -> Packed:
        """Return a row of a prompt and a response of one token each, of an id that may be sampled."""
        token = next(i for i in range(len(banned) + 2) if i not in banned and i != self._policy.image_token)
        one = np.array([token], dtype=np.int32)
        group = Group("", one, (), (Trace(one, np.ones(1, dtype=bool)),))
        return pack([group], [(0, 1)], self._policy.image_token, [np.zeros((3, 1))]).to(self._device)

    def _pixels(self, digests: Sequence[str]) -> Pixels | None:
        pixels = self._images.pixels(digests)
        if pixels is None:
            return None
        return Pixels(pixels.values.to(self._device, self._policy.dtype), pixels.grids)

    def _check_parts(self, shard: Shard) -> None:
        seen = [np.zeros(len(g.traces), dtype=np.int64) for g in shard.groups]
        for p in shard.parts:
            fits = 0 <= p.group < len(seen) and 0 <= p.start < p.stop <= len(seen[p.group])
            if not fits or not 0 <= p.micro_batch < shard.micro_batches:
                message = f"part {p} does not fit {len(seen)} groups and {shard.micro_batches} micro-batches"
                raise CommandError(message)
            seen[p.group][p.start : p.stop] += 1
        for group, count in zip(shard.groups, seen, strict=True):
            if not (count == 1).all():
                raise GroupError(group.id, f"traces are planned {count.tolist()} times, want once each")

    def _check(self, group: Group) -> list[tuple[int, int, int]]:
        """Refuse a group that does not fit the model; return the grids of its images."""
        vocabulary = self._policy.head.shape[0]
        if len(group.prompt) == 0:
            raise GroupError(group.id, "the prompt is empty")
        for ids in (group.prompt, *(t.tokens for t in group.traces)):
            outside = ids[(ids < 0) | (ids >= vocabulary)]
            if outside.size:
                raise GroupError(group.id, f"token id {int(outside[0])} is outside of [0, {vocabulary})")
        try:
            grids = self._images.grids(group.images)
            want = self._images.tokens(group.images, self._policy)
        except ImageError as error:
            raise GroupError(group.id, str(error)) from error
        slots = int((group.prompt == self._policy.image_token).sum())
        if slots != want:
            raise GroupError(group.id, f"the prompt has {slots} image tokens, our own expansion {want}")
        return grids

    def advantages(self, micro: MicroBatch, values: Sequence[Sequence[np.ndarray]]) -> torch.Tensor:
        """Return the advantage of each token [R] from values [Q][G] of [1] or [T]."""
        rows = []
        for (group, trace), length in zip(micro.traces, micro.packed.lengths, strict=True):
            value = np.asarray(values[group][trace], dtype=np.float32)
            if value.shape not in ((1,), (length,)):
                message = f"advantages of group {group} trace {trace} have shape {value.shape}, want 1 or {length}"
                raise CommandError(message)
            rows.append(np.broadcast_to(value, (length,)))
        return self.flat(rows)

    def flat(self, arrays: Sequence[np.ndarray], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Lay arrays end to end on the device."""
        return torch.from_numpy(np.concatenate(arrays)).to(self._device, dtype)


def _sampled(trace: Trace) -> np.ndarray:
    if trace.rollout_logprobs is None:
        return np.full(len(trace.tokens), np.nan, dtype=np.float32)
    return trace.rollout_logprobs


def by_trace(loaded: Loaded, name: str) -> np.ndarray | None:
    """Return old, reference or entropy flat over the shard's traces in their order, [sum T] float32."""
    rows: dict[tuple[int, int], np.ndarray] = {}
    for micro in loaded.micro_batches:
        values = getattr(micro, name)
        if values is None:
            return None
        parts = np.split(values.float().cpu().numpy(), np.cumsum(micro.packed.lengths)[:-1])
        rows.update(zip(micro.traces, parts, strict=True))
    ordered = [rows[q, i] for q, g in enumerate(loaded.shard.groups) for i in range(len(g.traces))]
    return np.concatenate(ordered) if ordered else np.zeros(0, dtype=np.float32)
