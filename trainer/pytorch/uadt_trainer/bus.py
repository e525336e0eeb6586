"""The bus of one rank: commands in, answers and heartbeats out, on a thread of its own.

The layout of values (headers, checksums, parts and manifests) is that of the
coordinator's bus package. Training never runs on this thread, so heartbeats go
on during a step; commands wait in a queue until the training thread takes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import queue
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.errors import Error as StreamError

from .crc32c import checksum

PART = 1 << 20  # bytes of one message
LIMIT = 2 << 30  # bytes of a value
BEAT = 0.5  # seconds between heartbeats
PATIENCE = 30.0  # seconds that one exchange with the bus may take
SCHEMA, CRC, PARTS = "Uadt-Schema", "Uadt-Crc32c", "Uadt-Parts"

log = logging.getLogger("uadt_trainer")


class BusError(Exception):
    """The bus did not answer, or holds bytes that do not match their checksum."""


@dataclass(frozen=True)
class Incoming:
    """A command as it arrived."""

    incarnation: int
    key: str  # <session>-<number>
    command: str
    data: bytes


@dataclass(frozen=True)
class BusOptions:
    """How a rank finds its run."""

    url: str
    run: str
    rank: int
    seed: str = ""  # nkey seed; empty is no authentication
    inbox: str = "_INBOX"


@dataclass
class Coordinator:
    """Who coordinates at present, as the run's value `trainer` says."""

    incarnation: int = 0
    session: str = ""


@dataclass
class _Parts:
    by_sequence: dict[int, bytes] = field(default_factory=dict)


class Bus:
    """A rank's connection. `describe` returns the fields of a heartbeat."""

    def __init__(self, options: BusOptions, describe: Callable[[], dict[str, Any]]) -> None:
        self._options, self._describe = options, describe
        self.commands: queue.Queue[Incoming] = queue.Queue()
        self.coordinator = Coordinator()
        self._parts = _Parts()
        self._loop = asyncio.new_event_loop()
        self._client = Client()
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="bus", daemon=True)

    def start(self, timeout: float) -> None:
        """Connect; fails if no server answers in time."""
        self._thread.start()
        self._ready.result(timeout)

    def close(self) -> None:
        """End the connection."""
        with contextlib.suppress(NatsError, TimeoutError):
            self._call(self._client.close(), 5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def answer(self, to: Incoming, schema: str, data: bytes, suffix: str = "") -> None:
        """Publish the answer to a command; returns when the bus has it."""
        o = self._options
        subject = f"uadt.{o.run}.{to.incarnation}.score.{o.rank}.{to.key}{suffix}"
        self._call(self._publish(subject, schema, data), PATIENCE + len(data) / 1e6)

    def value(self, name: str) -> dict[str, Any]:
        """Return the run's latest value of a name, a JSON object; empty if there is none."""
        return self._call(self._value(name), PATIENCE)

    def _call(self, work: Any, timeout: float) -> Any:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except TimeoutError as error:
            future.cancel()
            message = f"the bus at {self._options.url} did not answer in {timeout:.0f} s"
            raise BusError(message) from error

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        main = self._loop.create_task(self._main())
        main.add_done_callback(self._ended)
        self._loop.run_forever()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not self._ready.done():
            self._ready.set_exception(error)
        else:
            log.error("the bus thread ended: %s", error)

    async def _main(self) -> None:
        o = self._options
        settings: dict[str, Any] = {"nkeys_seed_str": o.seed} if o.seed else {}
        self._client = await nats.connect(
            o.url,
            name=f"trainer rank {o.rank}",
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.5,
            inbox_prefix=o.inbox.encode(),
            **settings,
        )
        self._ready.set_result(None)
        await asyncio.gather(self._beat(), self._pull())

    async def _beat(self) -> None:
        """Say twice a second who is here, to whoever coordinates."""
        o = self._options
        while not self._client.is_closed:
            try:
                value = await self._value("trainer")
                found = Coordinator(int(value.get("incarnation", 0)), str(value.get("session", "")))
                if found.incarnation >= self.coordinator.incarnation and found.session:
                    self.coordinator = found
                if self.coordinator.session:
                    beat = {"version": 1, "session": self.coordinator.session, **self._describe()}
                    subject = f"uadt.{o.run}.{self.coordinator.incarnation}.event.trainer.{o.rank}"
                    data = json.dumps(beat).encode()
                    await self._client.publish(
                        subject, data, headers={SCHEMA: "uadt.trainer-rank/1", CRC: checksum(data)}
                    )
                    await self._client.flush(5)
            except (NatsError, StreamError, TimeoutError, BusError, OSError) as error:
                log.debug("heartbeat: %s", error)
            await asyncio.sleep(BEAT)

    async def _pull(self) -> None:
        """Take commands from the rank's mailbox, which the coordinator makes."""
        o = self._options
        subscription = await self._client.jetstream().pull_subscribe_bind(f"{o.run}_{o.rank}", "TRAIN")
        while not self._client.is_closed:
            try:
                for message in await subscription.fetch(8, timeout=5):
                    await message.ack()
                    await self._take(message)
            except (TimeoutError, NatsError, StreamError) as error:
                log.debug("mailbox: %s", error)
                await asyncio.sleep(0.1)
            except BusError as error:
                log.warning("a command was passed over: %s", error)

    async def _take(self, message: Msg) -> None:
        tokens = message.subject.split(".")
        if len(tokens) < 7 or not tokens[2].isdecimal():
            return
        sequence = message.metadata.sequence.stream
        kind = (message.headers or {}).get(PARTS, "")
        data = _checked(message.subject, message.headers, message.data)
        if kind == "part":
            self._parts.by_sequence[sequence] = data
            return
        if kind == "manifest":
            data = await self._join(message.subject, data)
        self.commands.put(Incoming(int(tokens[2]), tokens[5], tokens[6], data))

    async def _join(self, subject: str, data: bytes) -> bytes:
        """Return the value that a manifest stands for."""
        try:
            manifest = json.loads(data)
            size, whole, parts = int(manifest["bytes"]), manifest["crc32c"], manifest["parts"]
            if manifest["version"] != 1 or not 0 <= size <= LIMIT or sum(int(p["bytes"]) for p in parts) != size:
                raise ValueError
        except (ValueError, KeyError, TypeError) as error:
            message = f"{subject}: not a manifest"
            raise BusError(message) from error
        pieces = []
        for part in parts:
            piece = self._parts.by_sequence.pop(int(part["seq"]), None)
            if piece is None:
                piece = await self._stored(subject, int(part["seq"]))
            if len(piece) != int(part["bytes"]) or checksum(piece) != part["crc32c"]:
                message = f"{subject}: part {part['seq']} is another message than its manifest says"
                raise BusError(message)
            pieces.append(piece)
        value = b"".join(pieces)
        if checksum(value) != whole:
            message = f"{subject}: the checksum of the whole is wrong"
            raise BusError(message)
        return value

    async def _stored(self, subject: str, sequence: int) -> bytes:
        reply = await self._client.request(
            "$JS.API.DIRECT.GET.TRAIN", json.dumps({"seq": sequence}).encode(), timeout=PATIENCE
        )
        if (reply.headers or {}).get("Status"):
            message = f"{subject}: part {sequence} is gone"
            raise BusError(message)
        return _checked(subject, reply.headers, reply.data)

    async def _value(self, name: str) -> dict[str, Any]:
        key = f"$KV.uadt.{self._options.run}.{name}"
        reply = await self._client.request(f"$JS.API.DIRECT.GET.KV_uadt.{key}", b"", timeout=5)
        headers = reply.headers or {}
        if headers.get("Status") or headers.get("KV-Operation"):
            return {}
        try:
            value = json.loads(reply.data)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            message = f"the run's value {name} is no JSON object"
            raise BusError(message)
        return value

    async def _publish(self, subject: str, schema: str, data: bytes) -> None:
        headers = {SCHEMA: schema, CRC: checksum(data)}
        if len(data) <= PART:
            await self._stream(subject, data, headers)
            return
        nonce = uuid.uuid4().hex
        manifest: dict[str, Any] = {"version": 1, "bytes": len(data), "crc32c": headers[CRC], "parts": []}
        for i in range(0, len(data), PART):
            piece = data[i : i + PART]
            crc = checksum(piece)
            under = f"{subject}.part-{nonce}-{i // PART}"
            sequence = await self._stream(under, piece, {SCHEMA: schema, CRC: crc, PARTS: "part"})
            manifest["parts"].append({"seq": sequence, "bytes": len(piece), "crc32c": crc})
        text = json.dumps(manifest).encode()
        await self._stream(subject, text, {SCHEMA: schema, CRC: checksum(text), PARTS: "manifest"})

    async def _stream(self, subject: str, data: bytes, headers: dict[str, str]) -> int:
        """Store one message; a bus that is away or full is asked again until its caller gives up."""
        while True:
            try:
                ack = await self._client.jetstream().publish(subject, data, timeout=5, headers=dict(headers))
            except (NatsError, StreamError, TimeoutError) as error:
                log.warning("publishing %s: %s", subject, error)
                await asyncio.sleep(0.2)
            else:
                return ack.seq


def _checked(subject: str, headers: dict[str, str] | None, data: bytes) -> bytes:
    if (headers or {}).get(CRC) != checksum(data):
        message = f"{subject}: wrong checksum"
        raise BusError(message)
    return data
