"""Snapshots, groups and the endpoint, over gloo with a peer that receives as a server does."""

from __future__ import annotations

import sys
import threading
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from broadcast_kit import CPU, HOST, PATIENCE, Later, Peer, enrol, policy, same, weights

from uadt_trainer import communicator
from uadt_trainer.bus import BusOptions
from uadt_trainer.communicator import BroadcastError, GlooCommunicator, Named, NCCLCommunicator, packed, update_info
from uadt_trainer.engine import Engine, EngineOptions
from uadt_trainer.frames import Fields
from uadt_trainer.ranks import Ranks
from uadt_trainer.server import Server
from uadt_trainer.transfer import (
    MAX_SECONDS,
    BroadcastTimeoutError,
    GroupUnknownError,
    PolicyGoneError,
    Transfer,
)

pytestmark = pytest.mark.usefixtures("loopback")


@pytest.mark.parametrize("limit", [0, 1, 60, 100, 10_000])
def test_buffers_end_after_the_tensor_that_exceeds_the_limit(limit: int) -> None:
    tensors = weights(0)
    sizes = [t.numel() * t.element_size() for t in tensors.values()]
    buffers = list(packed(tensors.items(), limit))
    ends, total = [], 0
    for size in sizes:
        total += size
        if total > limit:
            ends.append(total)
            total = 0
    assert [b.numel() for b in buffers] == ends + ([total] if total else [])
    assert torch.equal(torch.cat(buffers), torch.cat([t.reshape(-1).view(torch.uint8) for t in tensors.values()]))


def test_a_server_receives_what_was_published(transfer: Transfer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(communicator, "BUFFER", 100)  # several buffers
    first, second = weights(1), weights(2)
    transfer.hold(policy(1), first, first)
    group, peer, info = enrol(transfer, "a", 1)
    assert info == update_info(first)
    for version, expected in ((1, first), (2, second)):
        transfer.hold(policy(version), expected, expected)
        info = transfer.prepare(group, policy(version), PATIENCE)["update_info"]
        got = Later(lambda info=info: peer.receive(info))
        sent = transfer.send(group, PATIENCE)
        assert same(got.result(), expected)
        assert sent["bytes"] == sum(t.numel() * t.element_size() for t in expected.values())


def test_the_last_two_policies_are_held_and_the_earlier_one_on_the_host(transfer: Transfer) -> None:
    for version in (1, 2, 3):
        transfer.hold(policy(version), weights(version), weights(10 + version))
    with pytest.raises(PolicyGoneError, match=r"policy 1\.1-0+ is not held .* held: 1\.3-0+, 1\.2-0+"):
        transfer.join("a", policy(1), 2, PATIENCE)
    group, peer, info = enrol(transfer, "a", 2)
    got = Later(lambda: peer.receive(info))
    transfer.send(group, PATIENCE)
    assert same(got.result(), weights(12))
    with pytest.raises(PolicyGoneError):
        transfer.prepare(group, policy(1), PATIENCE)
    transfer.prepare(group, policy(3), PATIENCE)
    transfer.forget()
    got = Later(lambda: peer.receive(info))
    transfer.send(group, PATIENCE)  # what was prepared stays until it is sent, on the host
    assert same(got.result(), weights(13))
    with pytest.raises(PolicyGoneError, match="held: none"):
        transfer.prepare(group, policy(3), PATIENCE)


def test_a_device_holds_one_copy_whatever_was_prepared() -> None:
    """A worker that dies after prepare, or whose server never joins, keeps no copy on the device."""
    met, lost = Stuck(joins=True), Stuck(joins=False)
    opened = iter((met, lost))
    transfer = Transfer(CPU, HOST, lambda *_: next(opened))
    transfer.hold(policy(1), weights(1), weights(11))
    copy = weakref.ref(transfer._held[0].device["w0"])
    prepared = transfer.join("a", policy(1), 2, PATIENCE)["group"]
    transfer.prepare(prepared, policy(1), PATIENCE)
    late = transfer.join("b", policy(1), 2, PATIENCE)["group"]
    preparing = Later(lambda: transfer.prepare(late, policy(1), PATIENCE))
    assert lost.waiting.wait(PATIENCE)
    assert copy() is not None
    transfer.make_room()
    assert copy() is None
    sending = Later(lambda: transfer.send(prepared, PATIENCE))
    assert met.waiting.wait(PATIENCE)
    assert same(met.sent, weights(11))
    transfer.close()
    for call in (preparing, sending):
        with pytest.raises(BroadcastError, match="aborted"):
            call.result()


def test_a_publish_makes_room_before_it_copies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("uadt_trainer.server.Bus", lambda *_: None)
    o = EngineOptions(CPU, torch.float32, tmp_path, lambda _: b"")
    server = Server(BusOptions("nats://127.0.0.1:1", "r", 0, "", "_INBOX"), o, Ranks(), "me", HOST)
    engine, copies, alive = Engine(o), [], []

    def snapshot() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        alive.append(sum(c() is not None for c in copies))
        device = {"w": torch.ones(len(copies))}
        copies.append(weakref.ref(device["w"]))
        return device, {"w": device["w"].clone()}

    monkeypatch.setattr(engine, "snapshot", snapshot)
    try:
        for version in (0, 1, 2):
            body = {"incarnation": 1, "policy_version": version, "transport": "nccl"}
            assert server._publish(engine, Fields("publish", body))["url"]
    finally:
        server._endpoint.close()
    assert alive == [0, 0, 0]


def test_no_wait_is_longer_than_the_longest() -> None:
    given: list[float] = []

    def opener(device: torch.device, host: str, world: int, seconds: float) -> Stuck:
        given.append(seconds)
        return Stuck(joins=True)

    transfer = Transfer(CPU, HOST, opener)
    transfer.hold(policy(1), weights(1), weights(1))
    transfer.join("a", policy(1), 2, 1e300)
    assert given == [MAX_SECONDS]


def test_groups_are_apart(transfer: Transfer) -> None:
    held = weights(1)
    transfer.hold(policy(1), held, held)
    transfer.join("late", policy(1), 2, PATIENCE)  # nobody comes
    group, peer, info = enrol(transfer, "here", 1)
    got = Later(lambda: peer.receive(info))
    transfer.send(group, PATIENCE)
    assert same(got.result(), held)


def test_a_server_that_joins_again_ends_its_earlier_group(transfer: Transfer) -> None:
    held = weights(1)
    transfer.hold(policy(1), held, held)
    earlier, _, _ = enrol(transfer, "a", 1)
    group, peer, info = enrol(transfer, "a", 1)
    with pytest.raises(GroupUnknownError, match=earlier):
        transfer.send(earlier, PATIENCE)
    got = Later(lambda: peer.receive(info))
    transfer.send(group, PATIENCE)
    assert same(got.result(), held)


def test_a_server_that_never_comes_is_named(transfer: Transfer) -> None:
    transfer.hold(policy(1), weights(1), weights(1))
    joined = transfer.join("http://gone:8000", policy(1), 2, 0.2)
    with pytest.raises(BroadcastError, match="server http://gone:8000 did not join"):
        transfer.prepare(joined["group"], policy(1), PATIENCE)
    with pytest.raises(GroupUnknownError):
        transfer.prepare(joined["group"], policy(1), PATIENCE)


def test_a_server_that_dies_ends_its_group(transfer: Transfer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(communicator, "BUFFER", 1 << 20)
    big = {f"w{i}": torch.zeros(1 << 19) for i in range(32)}  # more than sockets hold
    transfer.hold(policy(1), big, big)
    group, peer, _ = enrol(transfer, "a", 1)
    del peer  # its sockets close
    with pytest.raises(BroadcastError, match=r"policy 1\.1-0+ to server a"):
        transfer.send(group, PATIENCE)
    with pytest.raises(GroupUnknownError):
        transfer.send(group, PATIENCE)


@pytest.mark.parametrize("world", [-1, 0, 1, 5000])
def test_worlds_that_cannot_be(transfer: Transfer, world: int) -> None:
    transfer.hold(policy(1), weights(1), weights(1))
    with pytest.raises(BroadcastError, match=f"a group of {world} ranks"):
        transfer.join("a", policy(1), world, PATIENCE)


class Stuck:
    """A communicator whose other side does nothing, until it is aborted."""

    port = 7

    def __init__(self, joins: bool) -> None:
        self.joins, self.aborted, self.waiting = joins, threading.Event(), threading.Event()
        self.sent: dict[str, torch.Tensor] = {}

    def join(self) -> None:
        if not self.joins:
            self.wait()

    def send(self, tensors: Named) -> None:
        self.sent = dict(tensors)
        self.wait()

    def wait(self) -> None:
        self.waiting.set()
        assert self.aborted.wait(PATIENCE)
        raise RuntimeError("aborted")

    def abort(self) -> None:
        self.aborted.set()


@pytest.mark.parametrize("joins", [True, False])
def test_waits_end_at_their_limit(joins: bool) -> None:
    stuck = Stuck(joins)
    transfer = Transfer(CPU, HOST, lambda *_: stuck)
    transfer.hold(policy(1), weights(1), weights(1))
    group = transfer.join("a", policy(1), 2, PATIENCE)["group"]
    with pytest.raises(BroadcastTimeoutError, match=r"server a .* within 0.05 s"):
        transfer.prepare(group, policy(1), 0.05 if not joins else PATIENCE)
        transfer.send(group, 0.05)
    assert stuck.aborted.is_set()


def test_leaving_frees_the_sending_thread() -> None:
    stuck = Stuck(joins=True)
    transfer = Transfer(CPU, HOST, lambda *_: stuck)
    transfer.hold(policy(1), weights(1), weights(1))
    group = transfer.join("a", policy(1), 2, PATIENCE)["group"]
    transfer.prepare(group, policy(1), PATIENCE)
    sending = Later(lambda: transfer.send(group, PATIENCE))
    assert stuck.waiting.wait(PATIENCE)
    transfer.leave(group)
    transfer.leave(group)
    with pytest.raises(BroadcastError, match="to server a: aborted"):
        sending.result()
    with pytest.raises(BroadcastError, match="nothing was prepared"):
        other = transfer.join("a", policy(1), 2, PATIENCE)["group"]
        transfer.send(other, PATIENCE)


def test_gloo_gives_up_after_the_buffer_on_its_way() -> None:
    made = GlooCommunicator(HOST, 2, PATIENCE)
    peer = Later(lambda: Peer({"master_address": HOST, "master_port": made.port, "rank_offset": 1, "world_size": 2}))
    made.join()
    peer.result()

    def stopping() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.zeros(1)
        made.abort()
        yield "b", torch.zeros(1)

    with pytest.raises(BroadcastError, match="given up"):
        made.send(stopping())


class FakeStream:
    """Counts who waits for it."""

    waits = 0

    def synchronize(self) -> None:
        self.waits += 1


class FakeNCCL:
    """Stands for vLLM's engine: records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.sent: list[tuple[str, torch.device]] = []
        self.streams = [FakeStream(), FakeStream(), FakeStream()]
        self.current = self.streams[2]
        self.group = types.SimpleNamespace(disabled=False, comm="comm", nccl=self)

    def trainer_init(self, info: dict[str, Any]) -> Any:
        self.calls.append(("init", info))
        return self.group

    def trainer_send_weights(self, iterator: Iterator[tuple[str, torch.Tensor]], arguments: dict[str, Any]) -> None:
        self.calls.append(("send", arguments))
        for turn in range(100):  # a buffer of one tensor on each stream in turn
            self.current = self.streams[turn % 2]
            if (item := next(iterator, None)) is None:
                break
            self.sent.append((item[0], item[1].device))
        self.current = self.streams[2]

    def ncclCommAbort(self, comm: str) -> None:  # noqa: N802 - NCCL's name
        self.calls.append(("abort", comm))


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch) -> FakeNCCL:
    fake = FakeNCCL()
    module = types.SimpleNamespace(NCCLWeightTransferEngine=fake, NCCLTrainerSendWeightsArgs=dict)
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer.nccl_engine", module)
    for name in ("set_device", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda d, name=name: fake.calls.append((name, d)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: fake.current)
    return fake


def test_nccl_is_driven_by_the_calls_that_were_verified(nccl: FakeNCCL) -> None:
    device = torch.device("meta")  # stands for a GPU: tensors of the host are elsewhere
    made = NCCLCommunicator(device, HOST, 3)
    made.join()
    made.send(weights(1).items())
    assert nccl.calls == [
        ("set_device", device),
        ("init", {"master_address": HOST, "master_port": made.port, "world_size": 3}),
        ("set_device", device),
        ("send", {"group": nccl.group, "packed": True, "packed_buffer_size_bytes": 128 << 20}),
    ]
    assert nccl.sent == [(name, device) for name in weights(1)]
    assert [s.waits for s in nccl.streams] == [1, 1, 0]  # for what was sent, not for training
    del nccl.calls[:]
    made.abort()
    made.abort()
    assert nccl.calls == [("abort", "comm")]
    assert nccl.group.disabled
    with pytest.raises(BroadcastError, match="given up"):
        made.send(weights(1).items())


def test_a_gpu_broadcasts_by_nccl(nccl: FakeNCCL) -> None:
    made = communicator.open_communicator(torch.device("cuda:0"), HOST, 3, PATIENCE)
    assert isinstance(made, NCCLCommunicator)


def test_nccl_that_meets_after_it_was_given_up_is_freed(nccl: FakeNCCL) -> None:
    transfer = Transfer(torch.device("cuda:0"), HOST)
    transfer.hold(policy(1), weights(1), weights(1))
    may, freed = threading.Event(), threading.Event()
    meet, nccl.ncclCommAbort = nccl.trainer_init, lambda _: freed.set()
    nccl.trainer_init = lambda info: meet(info) if may.wait(PATIENCE) else None
    group = transfer.join("a", policy(1), 2, PATIENCE)["group"]
    transfer.leave(group)
    may.set()
    assert freed.wait(PATIENCE)


def test_without_vllm_or_nccl_a_gpu_trainer_says_so(nccl: FakeNCCL, monkeypatch: pytest.MonkeyPatch) -> None:
    nccl.group.disabled = True
    with pytest.raises(BroadcastError, match="no NCCL library"):
        NCCLCommunicator(torch.device("cuda:0"), HOST, 2).join()
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer.nccl_engine", None)
    with pytest.raises(BroadcastError, match="vLLM's own engine, which cannot be imported"):
        NCCLCommunicator(torch.device("cuda:0"), HOST, 2)
