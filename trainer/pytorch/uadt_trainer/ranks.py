"""What ranks do together: sums of gradients, and values of all ranks on every one.

Data parallel: every rank trains its own groups and holds the whole model, or a part of it (sharding.py);
the loss is divided by global denominators, so gradients are summed, never averaged.
Every collective has the process group's time limit, and fails with what was waited for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist

BUCKET = 64 << 20  # bytes of gradients summed in one call


class CollectiveError(Exception):
    """Another rank is gone, or did not come within the time limit: this rank's state is not to be trusted."""


class Ranks:
    """The ranks of one trainer; a single one needs no process group."""

    def __init__(self, rank: int = 0, world: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.world = rank, world
        self.device = device or torch.device("cpu")

    @contextmanager
    def _together(self, what: str) -> Iterator[None]:
        """Name what the ranks were about when one of them does not come."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            message = f"rank {self.rank} of {self.world}, {what}: {error}"
            raise CollectiveError(message) from error

    @contextmanager
    def named(self, what: str) -> Iterator[None]:
        """Do the same for work of all kinds, in which sharded weights are gathered: errors of its own stay as they are.

        On a GPU a rank that does not come is noticed by NCCL's watchdog, which ends the process.
        """
        try:
            yield
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            message = f"rank {self.rank} of {self.world}, {what}: {error}"
            raise CollectiveError(message) from error

    def sum_gradients(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over ranks; the same list on every rank."""
        if self.world == 1:
            return
        bucket: list[torch.Tensor] = []
        size = 0
        with self._together("sum of gradients"):
            for tensor in tensors:
                if bucket and (size >= BUCKET or tensor.dtype != bucket[0].dtype):
                    _sum_bucket(bucket)
                    bucket, size = [], 0
                bucket.append(tensor)
                size += tensor.numel() * tensor.element_size()
            if bucket:
                _sum_bucket(bucket)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over ranks."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        with self._together("sum of numbers"):
            dist.all_reduce(tensor)
            return tensor.tolist()

    def largest(self, values: np.ndarray) -> np.ndarray:
        """Return the maxima over ranks of arrays of one shape."""
        if self.world == 1:
            return values
        tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)).to(self.device)
        with self._together("maxima"):
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
            return tensor.cpu().numpy()

    def gather(self, values: np.ndarray) -> list[np.ndarray]:
        """Return the [n_r] float64 arrays of all ranks; lengths may differ."""
        if self.world == 1:
            return [values]
        count = torch.zeros(self.world, dtype=torch.int64, device=self.device)
        count[self.rank] = len(values)
        with self._together("gathering of values"):
            dist.all_reduce(count)
            lengths = count.tolist()
            padded = torch.zeros(max(*lengths, 1), dtype=torch.float64, device=self.device)
            padded[: len(values)] = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
            parts = [torch.empty_like(padded) for _ in lengths]
            dist.all_gather(parts, padded)
            return [p[:n].cpu().numpy() for p, n in zip(parts, lengths, strict=True)]

    def wait(self) -> None:
        """Return when every rank is here."""
        self.sum([0.0])


def _sum_bucket(bucket: Sequence[torch.Tensor]) -> None:
    flat = torch.cat([t.reshape(-1) for t in bucket])
    dist.all_reduce(flat)
    for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
        tensor.copy_(part.view_as(tensor))
