"""How weights are broadcast to one inference server: NCCL between GPUs, gloo between CPUs.

A communicator is a group of this process, rank 0, and the workers of one server.
Both kinds cut the tensors into buffers by one rule, that of vLLM's own engine,
so that a server needs to know names, shapes and the size of a buffer only.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

BUFFER = 128 << 20  # bytes of a buffer; vLLM's default of 1 GiB leaves a card of 80 GB little room

Named = Iterable[tuple[str, torch.Tensor]]


class BroadcastError(Exception):
    """A broadcast that was not begun or did not come to its end."""


class Communicator(Protocol):
    """Rank 0 of a group with one server. join and send block; abort may be called meanwhile, from another thread."""

    port: int  # where rank 0 waits for the others

    def join(self) -> None:
        """Meet the server's workers."""

    def send(self, tensors: Named) -> None:
        """Broadcast tensors; they have arrived when it returns."""

    def abort(self) -> None:
        """Have join and send fail as soon as they can, now and later, and free what the group holds."""


def open_communicator(device: torch.device, host: str, world: int, seconds: float) -> Communicator:
    """Listen on host for the other world - 1 ranks; seconds bounds each wait for them."""
    if device.type == "cuda":
        return NCCLCommunicator(device, host, world)
    return GlooCommunicator(host, world, seconds)


def update_info(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Describe what send will broadcast, as vLLM's /update_weights takes it."""
    return {
        "names": list(tensors),
        "dtype_names": [str(t.dtype).removeprefix("torch.") for t in tensors.values()],
        "shapes": [list(t.shape) for t in tensors.values()],
        "packed": True,
        "packed_buffer_size_bytes": BUFFER,
    }


def packed(tensors: Named, limit: int) -> Iterator[torch.Tensor]:
    """Yield [n] uint8 buffers of whole tensors; a buffer ends after the tensor with which it exceeds the limit."""
    parts: list[torch.Tensor] = []
    size = 0
    for _, tensor in tensors:
        parts.append(tensor.contiguous().reshape(-1).view(torch.uint8))
        size += parts[-1].numel()
        if size > limit:
            yield torch.cat(parts)
            parts, size = [], 0
    if parts:
        yield torch.cat(parts)


class _Stoppable:
    """Passes tensors on until it is told to stop."""

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def _check(self) -> None:
        if self._stopped.is_set():
            message = "it was given up"
            raise BroadcastError(message)

    def _watched(self, tensors: Named) -> Iterator[tuple[str, torch.Tensor]]:
        for item in tensors:
            self._check()
            yield item


class GlooCommunicator(_Stoppable):
    """A group over TCP, for tests and for trainers on CPUs."""

    def __init__(self, host: str, world: int, seconds: float) -> None:
        super().__init__()
        self._world, self._limit = world, timedelta(seconds=seconds)
        listener = socket.create_server((host, 0))
        self.port = listener.getsockname()[1]
        self._store = dist.TCPStore(
            host,
            self.port,
            is_master=True,
            wait_for_workers=False,
            timeout=self._limit,
            master_listen_fd=listener.detach(),
        )
        self._group: Any = None

    def join(self) -> None:
        """Meet the server's workers."""
        self._group = dist.ProcessGroupGloo(self._store, 0, self._world, self._limit)
        self._check()

    def send(self, tensors: Named) -> None:
        """Broadcast tensors; gloo itself ends a wait that takes too long."""
        for buffer in packed(self._watched(tensors), BUFFER):
            self._group.broadcast(buffer, 0).wait()

    def abort(self) -> None:
        """Stop after the buffer that is on its way."""
        self._stopped.set()


class NCCLCommunicator(_Stoppable):
    """vLLM's own communicator between GPUs; vLLM must be installed beside the trainer."""

    def __init__(self, device: torch.device, host: str, world: int) -> None:
        super().__init__()
        try:
            from vllm.distributed.weight_transfer.nccl_engine import (
                NCCLTrainerSendWeightsArgs,
                NCCLWeightTransferEngine,
            )
        except ImportError as error:
            message = f"weights are broadcast from a GPU by vLLM's own engine, which cannot be imported here: {error}"
            raise BroadcastError(message) from error
        self._engine, self._arguments = NCCLWeightTransferEngine, NCCLTrainerSendWeightsArgs
        self._device, self._host, self._world = device, host, world
        with socket.create_server((host, 0)) as probe:
            self.port = probe.getsockname()[1]
        self._group: Any = None
        self._ending = threading.Lock()

    def join(self) -> None:
        """Meet the server's workers. NCCL has no deadline here: see the caller's."""
        torch.cuda.set_device(self._device)  # each thread has a current device of its own
        where = {"master_address": self._host, "master_port": self.port, "world_size": self._world}
        self._group = self._engine.trainer_init(where)
        if self._group.disabled:
            message = "vLLM found no NCCL library"
            raise BroadcastError(message)
        self._check()

    def send(self, tensors: Named) -> None:
        """Broadcast tensors, wherever they are, packing one buffer while another is on its way."""
        torch.cuda.set_device(self._device)
        arguments = self._arguments(group=self._group, packed=True, packed_buffer_size_bytes=BUFFER)
        streams: set[torch.cuda.Stream] = set()
        self._engine.trainer_send_weights(self._placed(tensors, streams), arguments)
        # Waiting for the whole device would be waiting for training, and for broadcasts to other servers.
        for stream in streams:
            stream.synchronize()
        self._check()

    def _placed(self, tensors: Named, streams: set[torch.cuda.Stream]) -> Iterator[tuple[str, torch.Tensor]]:
        """Pass tensors on from the device. vLLM takes each inside the stream that it packs and sends it on."""
        for name, tensor in self._watched(tensors):
            streams.add(torch.cuda.current_stream(self._device))
            yield name, tensor.to(self._device)

    def abort(self) -> None:
        """End the kernels that wait for the server; the sending thread wakes up and finds that it was stopped."""
        self._stopped.set()
        with self._ending:
            if self._group is None or self._group.disabled:
                return
            self._group.disabled = True  # nothing is launched on it any more
        self._group.nccl.ncclCommAbort(self._group.comm)
