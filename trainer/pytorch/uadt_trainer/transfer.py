"""What rank 0 offers to servers that take weights by broadcast: snapshots, and one group for each server.

A worker, which alone speaks to its servers, asks for four things: to join a
server to a new group, to prepare a policy for a group, to send it while the
server receives, and to leave. Groups are apart, so a server that is dead or
late keeps nobody else waiting; one that starts again joins anew. Whatever goes
wrong in a group ends that group, and every wait has a limit.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .communicator import BroadcastError, Communicator, open_communicator, update_info

KEPT = 2  # the last policy, and the one before it, which may still be on its way when the last is published
MAX_WORLD = 4096  # ranks of a group
MAX_SECONDS = 3600.0  # a worker may not ask for more

log = logging.getLogger("uadt_trainer")

Opener = Callable[[torch.device, str, int, float], Communicator]


class PolicyGoneError(BroadcastError):
    """The weights that were asked for are not held, or not any more."""


class GroupUnknownError(BroadcastError):
    """The group was never made here, or has ended."""


class BroadcastTimeoutError(BroadcastError):
    """The other side did not do its part in time."""


@dataclass(frozen=True)
class PolicyId:
    """Which weights; the same as the coordinator's name for them."""

    incarnation: int
    version: int
    digest: str

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.version}-{self.digest[:12]}"


@dataclass(frozen=True)
class _Held:
    """Weights of one policy, on the device while it is the last, and the host's copy, which outlives that."""

    policy: PolicyId
    device: dict[str, torch.Tensor]
    host: dict[str, torch.Tensor]

    def off_device(self) -> _Held:
        """Return the same weights without the copy on the device."""
        return replace(self, device=self.host)


@dataclass
class _Group:
    server: str
    communicator: Communicator
    ready: threading.Event = field(default_factory=threading.Event)
    failure: Exception | None = None
    prepared: _Held | None = None


class Transfer:
    """Snapshots and groups. Its methods may be called from several threads."""

    def __init__(self, device: torch.device, host: str, opener: Opener = open_communicator) -> None:
        self._device, self._host, self._open = device, host, opener
        self._lock = threading.Lock()
        self._held: tuple[_Held, ...] = ()
        self._groups: dict[str, _Group] = {}

    def hold(self, policy: PolicyId, device: dict[str, torch.Tensor], host: dict[str, torch.Tensor]) -> None:
        """Keep the weights of a policy, complete on the device, for those who will ask for them."""
        self.make_room()
        with self._lock:
            earlier = (h for h in self._held if h.policy != policy)
            self._held = (_Held(policy, device, host), *earlier)[:KEPT]

    def make_room(self) -> None:
        """Leave all weights on the host alone, those that were prepared too; only a send under way keeps its own."""
        with self._lock:
            self._held = tuple(h.off_device() for h in self._held)
            for group in self._groups.values():
                group.prepared = group.prepared and group.prepared.off_device()

    def forget(self) -> None:
        """Drop all weights but those that were prepared; groups stay."""
        self.make_room()
        with self._lock:
            self._held = ()

    def join(self, server: str, policy: PolicyId, world: int, seconds: float) -> dict[str, Any]:
        """Start this side's half of a group with a server of world - 1 workers; an earlier one is ended."""
        if not 2 <= world <= MAX_WORLD:
            message = f"a group of {world} ranks, want 2 to {MAX_WORLD}: the trainer and the server's workers"
            raise BroadcastError(message)
        with self._lock:
            self._find(policy)
            earlier = [name for name, g in self._groups.items() if g.server == server]
        for name in earlier:
            self.leave(name)
        name = uuid.uuid4().hex
        group = _Group(server, self._open(self._device, self._host, world, _bounded(seconds)))
        with self._lock:
            self._groups[name] = group
        # A daemon: NCCL waits for a peer that never comes until the process ends, and holds no weights meanwhile.
        threading.Thread(target=self._meet, args=(group,), name=f"join {server}", daemon=True).start()
        where = {"master_address": self._host, "master_port": group.communicator.port}
        return {"group": name, "init_info": where | {"rank_offset": 1, "world_size": world}}

    def _meet(self, group: _Group) -> None:
        try:
            group.communicator.join()
        except Exception as error:  # noqa: BLE001 - told to whoever waits for the group
            log.warning("server %s did not join: %s", group.server, error)
            group.failure = error
            group.communicator.abort()  # it may have met after it was given up
        group.ready.set()

    def prepare(self, name: str, policy: PolicyId, seconds: float) -> dict[str, Any]:
        """Wait until the group has met and say what a send of the policy will bring; the weights stay until then."""
        with self._lock:
            self._find(policy)
        group = self._group(name)
        if not group.ready.wait(_bounded(seconds)):
            self.leave(name)
            message = f"server {group.server} did not join within {seconds:g} s"
            raise BroadcastTimeoutError(message)
        if group.failure is not None:
            self.leave(name)
            message = f"server {group.server} did not join: {group.failure}"
            raise BroadcastError(message) from group.failure
        with self._lock:
            held = group.prepared = self._find(policy)  # nothing is kept while the group meets
        return {"update_info": update_info(held.device)}

    def send(self, name: str, seconds: float) -> dict[str, Any]:
        """Broadcast what was prepared while the server receives it."""
        group = self._group(name)
        with self._lock:
            held, group.prepared = group.prepared, None
        if held is None:
            message = f"nothing was prepared for server {group.server}"
            raise BroadcastError(message)
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self.leave(name)

        watch = threading.Timer(_bounded(seconds), give_up)
        watch.daemon = True
        started = time.perf_counter()
        watch.start()
        try:
            group.communicator.send(held.device.items())
        except Exception as error:
            self.leave(name)
            if late.is_set():
                message = f"server {group.server} did not take policy {held.policy} within {seconds:g} s"
                raise BroadcastTimeoutError(message) from error
            message = f"policy {held.policy} to server {group.server}: {error}"
            raise BroadcastError(message) from error
        finally:
            watch.cancel()
        size = sum(t.numel() * t.element_size() for t in held.device.values())
        return {"seconds": time.perf_counter() - started, "bytes": size}

    def leave(self, name: str) -> dict[str, Any]:
        """End a group, whatever it is doing; one that has ended already is no error."""
        with self._lock:
            group = self._groups.pop(name, None)
        if group is not None:
            group.prepared = None
            group.communicator.abort()
        return {}

    def close(self) -> None:
        """End all groups."""
        with self._lock:
            names = list(self._groups)
        for name in names:
            self.leave(name)

    def _find(self, policy: PolicyId) -> _Held:
        """Return what is held of a policy; the lock is the caller's."""
        found = next((h for h in self._held if h.policy == policy), None)
        if found is None:
            have = ", ".join(str(h.policy) for h in self._held) or "none"
            message = f"policy {policy} is not held for broadcasts; held: {have}"
            raise PolicyGoneError(message)
        return found

    def _group(self, name: str) -> _Group:
        with self._lock:
            group = self._groups.get(name)
        if group is None:
            message = f"group {name[:80]!r} is not known to this trainer, or has ended"
            raise GroupUnknownError(message)
        return group


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_SECONDS)
