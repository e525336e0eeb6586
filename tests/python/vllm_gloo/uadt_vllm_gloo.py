"""A weight transfer engine for stock vLLM on CPU: its own NCCL engine's protocol, over gloo.

A plugin of vLLM, found where this folder is on PYTHONPATH. It exists for tests: it lets the whole
way of broadcast weights be run where there is no GPU, and differs from the engine that is used on
GPUs in nothing but the collective.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLWeightTransferEngine,
    NCCLWeightTransferInitInfo,
    NCCLWeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.packed_tensor import unpack_tensor

PATIENCE = timedelta(seconds=60)


class GlooWeightTransferEngine(NCCLWeightTransferEngine):
    """Takes packed weights from rank 0 and loads them layer by layer, as the NCCL engine does."""

    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        """Join the trainer's group."""
        rank = init_info.rank_offset + self.parallel_config.rank
        store = dist.TCPStore(
            init_info.master_address, init_info.master_port, is_master=False, wait_for_workers=False, timeout=PATIENCE
        )
        self.model_update_group: Any = dist.ProcessGroupGloo(store, rank, init_info.world_size, PATIENCE)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive and load; there is no accelerator to wait for."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """Take buffers that are cut as the sender cuts them: after the tensor that exceeds the size."""
        names: list[str] = []
        shapes: list[list[int]] = []
        dtypes: list[torch.dtype] = []
        sizes: list[int] = []
        for name, dtype_name, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True):
            names.append(name)
            shapes.append(shape)
            dtypes.append(getattr(torch, dtype_name))
            sizes.append(math.prod(shape) * dtypes[-1].itemsize)
            if sum(sizes) > update_info.packed_buffer_size_bytes:
                self._receive(names, shapes, dtypes, sizes)
                names, shapes, dtypes, sizes = [], [], [], []
        if names:
            self._receive(names, shapes, dtypes, sizes)

    def _receive(self, names: list[str], shapes: list[list[int]], dtypes: list[torch.dtype], sizes: list[int]) -> None:
        buffer = torch.empty(sum(sizes), dtype=torch.uint8)
        self.model_update_group.broadcast(buffer, 0).wait()
        self.model.load_weights(unpack_tensor(buffer, names, shapes, dtypes, sizes))


def register() -> None:
    """Make the engine known as the backend gloo."""
    WeightTransferEngineFactory.register_engine("gloo", GlooWeightTransferEngine)
