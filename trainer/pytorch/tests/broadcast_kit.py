"""What tests of broadcasts share: policies, a server's half of a group over gloo, calls on threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from uadt_trainer.communicator import packed
from uadt_trainer.transfer import PolicyId, Transfer

HOST, CPU, PATIENCE = "127.0.0.1", torch.device("cpu"), 60.0


def weights(seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    made = {f"w{i}": torch.randn(3 + i, 5, generator=g) for i in range(7)}
    return made | {"half": torch.randn(9, generator=g).bfloat16(), "one": torch.randn((), generator=g)}


def policy(version: int) -> PolicyId:
    return PolicyId(1, version, f"{version:064x}")


class Peer:
    """The workers of a server: one, on a thread, which does what is asked of it in the order of the calls."""

    def __init__(self, init: dict[str, Any]) -> None:
        self.store = dist.TCPStore(
            init["master_address"],
            init["master_port"],
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=PATIENCE),
        )
        self.group = dist.ProcessGroupGloo(
            self.store, init["rank_offset"], init["world_size"], timedelta(seconds=PATIENCE)
        )

    def receive(self, info: dict[str, Any]) -> dict[str, torch.Tensor]:
        empty = [
            (n, torch.empty(s, dtype=getattr(torch, d)))
            for n, d, s in zip(info["names"], info["dtype_names"], info["shapes"], strict=True)
        ]
        flat = []
        for like in packed(empty, info["packed_buffer_size_bytes"]):
            buffer = torch.empty_like(like)
            self.group.broadcast(buffer, 0).wait()
            flat.append(buffer)
        every, out = torch.cat(flat), {}
        for name, like in empty:
            size = like.numel() * like.element_size()
            out[name], every = every[:size].clone().view(like.dtype).view(like.shape), every[size:]
        assert every.numel() == 0
        return out


class Later:
    """Runs a call on a thread; result returns or raises what it did."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._outcome: list[Any] = []

        def run() -> None:
            try:
                self._outcome.append(call())
            except Exception as error:  # noqa: BLE001 - raised in result
                self._outcome.append(error)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def result(self) -> Any:
        self._thread.join(PATIENCE)
        assert self._outcome, "it did not come to its end"
        if isinstance(self._outcome[0], Exception):
            raise self._outcome[0]
        return self._outcome[0]


def enrol(transfer: Transfer, server: str, version: int) -> tuple[str, Peer, dict[str, Any]]:
    joined = transfer.join(server, policy(version), 2, PATIENCE)
    peer = Later(lambda: Peer(joined["init_info"]))
    info = transfer.prepare(joined["group"], policy(version), PATIENCE)["update_info"]
    return joined["group"], peer.result(), info


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)
