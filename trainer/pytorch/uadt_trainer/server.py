"""Takes commands from the bus, has the engine carry them out, and answers.

One command at a time, in the order of the mailbox. A command for another
process (an earlier instance) or of an older coordinator is passed over. A new
coordinator, one with a higher incarnation on the bus, drops all state.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import commands
from .blobs import BlobAddress, BlobClient
from .bus import Bus, BusError, BusOptions, Incoming
from .encoder import Encoder
from .endpoint import Endpoint
from .engine import Engine, EngineOptions
from .errors import CommandError
from .frames import ANSWER, COMMAND, Fields, Frame, FrameError, decode, encode
from .images import ImageError
from .keeper import Saved
from .model import ArchitectureError
from .ranks import Ranks
from .transfer import PolicyId, Transfer
from .weights import CheckpointError, digest

log = logging.getLogger("uadt_trainer")

EXPECTED = (CommandError, FrameError, ImageError, CheckpointError, ArchitectureError, OSError, BusError)

Answer = tuple[dict[str, Any], dict[str, np.ndarray]]


class Stopped(Exception):
    """The coordinator asked this process to end."""


class Server:
    """One rank of the trainer on the bus."""

    def __init__(self, bus: BusOptions, engine: EngineOptions, ranks: Ranks, instance: str, address: str) -> None:
        self._options, self._ranks, self._instance = engine, ranks, instance
        self._scope = 0  # incarnation of the coordinator on the bus
        self._engine: Engine | None = None
        self._encoder: Encoder | None = None
        self._address = address  # of this host, for servers that take weights by broadcast
        self._endpoint: Endpoint | None = None
        self._busy = ""
        self._step = 0
        self._bus = Bus(bus, self._describe)
        self._blobs = BlobClient(self._blob_address)
        self._watchers: list[threading.Thread] = []

    def _describe(self) -> dict[str, Any]:
        return {
            "rank": self._ranks.rank,
            "world": self._ranks.world,
            "host": socket.gethostname(),
            "instance": self._instance,
            "incarnation": self._scope,
            "step": self._step,
            "busy": self._busy,
        }

    def _blob_address(self) -> BlobAddress:
        value = self._bus.value("blob")
        return BlobAddress(str(value.get("url", "")), str(value.get("token", "")))

    def run(self, connect: float, stop: threading.Event) -> None:
        """Serve until the coordinator says stop or the event is set."""
        self._bus.start(connect)
        try:
            while not stop.is_set():
                try:
                    incoming = self._bus.commands.get(timeout=0.5)
                except queue.Empty:
                    continue
                try:
                    self._serve(incoming)
                except Stopped:
                    return
        finally:
            for watcher in self._watchers:
                watcher.join()
            self._bus.close()
            if self._endpoint is not None:
                self._endpoint.close()

    def _serve(self, incoming: Incoming) -> None:
        if incoming.incarnation < self._scope:
            return
        try:
            frame = decode(COMMAND, incoming.data)
            head = Fields("command", frame.message)
            head.take("version", int)
            instance, body = head.take("instance", str), Fields(incoming.command, head.take("body", dict))
            head.done()
        except FrameError as error:
            self._reply(incoming, {}, {}, error)
            return
        if instance != self._instance:
            return
        if incoming.incarnation > self._scope or self._engine is None:
            self._scope, self._engine = incoming.incarnation, Engine(self._engine_options(), self._ranks)
            if self._endpoint is not None:
                self._endpoint.transfer.forget()
        self._busy = incoming.command
        try:
            with self._ranks.named(incoming.command):
                message, tensors = self._execute(self._engine, incoming, frame, body)
            self._step = self._engine.step_done
            self._busy = ""
            self._reply(incoming, message, tensors, None)
        except EXPECTED as error:
            self._busy = ""
            self._reply(incoming, {}, {}, error)
        except Stopped:
            self._reply(incoming, {}, {}, None)
            raise
        except Exception as error:
            # Out of memory, a collective that timed out, a defect: the state is not to be trusted.
            log.exception("%s failed", incoming.command)
            self._reply(incoming, {}, {}, error)
            raise

    def _engine_options(self) -> EngineOptions:
        return replace(self._options, fetch=self._blobs.fetch)

    def _reply(
        self,
        to: Incoming,
        message: dict[str, Any],
        tensors: dict[str, np.ndarray],
        error: Exception | None,
        suffix: str = "",
    ) -> None:
        failure = None
        if error is not None:
            details = error.details() if isinstance(error, CommandError) else {}
            kind = "OutOfMemoryError" if isinstance(error, torch.OutOfMemoryError) else type(error).__name__
            failure = {"type": kind, "message": str(error), **_flat_details(details)}
        answer = {"version": 1, "instance": self._instance, "command": to.command, "error": failure, "body": message}
        self._bus.answer(to, ANSWER + "/1", encode(ANSWER, answer, tensors), suffix)

    def _execute(self, engine: Engine, incoming: Incoming, frame: Frame, body: Fields) -> Answer:
        match incoming.command:
            case "begin":
                return self._begin(engine, body)
            case "load":
                engine.load(commands.read_shard(frame, body))
                return {}, {}
            case "score":
                step, temperature, banned = (
                    body.take("step", int),
                    body.take("temperature", float),
                    body.numbers("banned"),
                )
                body.done()
                return commands.write_scores(engine.score(step, temperature, banned))
            case "step":
                step, options = body.take("step", int), commands.read_options(body)
                body.done()
                advantages = commands.read_advantages(frame, engine.shard(step))
                return commands.write_report(engine.step(step, options, advantages)), {}
            case "publish":
                return self._publish(engine, body), {}
            case "save":
                path = Path(body.take("path", str))
                body.done()
                self._save(engine, incoming, path)
                return {}, {}
            case "encode":
                return self._encode(body)
            case "stop":
                body.done()
                raise Stopped
        message = f"unknown command {incoming.command!r}"
        raise FrameError(message)

    def _begin(self, engine: Engine, body: Fields) -> Answer:
        stage, how = commands.read_stage(body)
        # On a CPU memory is not what runs out.
        how["checkpointing"] = how["checkpointing"] and engine.options.device.type == "cuda"
        engine.options = replace(engine.options, **how)
        engine.begin(stage)
        return {}, {}

    def _publish(self, engine: Engine, body: Fields) -> dict[str, Any]:
        """Make the weights a directory, or hold them for broadcasts and say where to ask for those."""
        incarnation, version = body.take("incarnation", int), body.take("policy_version", int)
        transport = body.take("transport", str)
        body.done()
        engine.fence(incarnation)
        where = {"path": "", "digest": "", "url": "", "token": ""}
        match transport:
            case "directory":
                path, found = engine.publish(version)
                return where | {"path": str(path), "digest": found}
            case "lora":
                path, found = engine.publish_adapter(version)
                return where | {"path": str(path), "digest": found}
            case "nccl":
                if self._endpoint is not None:
                    self._endpoint.transfer.make_room()
                device, host = engine.snapshot()
                if self._ranks.rank > 0:
                    return where
                if self._endpoint is None:
                    self._endpoint = Endpoint(Transfer(engine.options.device, self._address), self._address)
                policy = PolicyId(incarnation, version, digest(host))
                self._endpoint.transfer.hold(policy, device, host)
                return where | {"digest": policy.digest, "url": self._endpoint.url, "token": self._endpoint.token}
        message = f"unknown transport {transport!r}"
        raise FrameError(message)

    def _save(self, engine: Engine, incoming: Incoming, path: Path) -> None:
        """Answer a second time, at the key with a d behind it, when the checkpoint is durable."""
        done, outcome = engine.save(path)

        def watch() -> None:
            done.wait()
            saved = outcome[0]
            try:
                if isinstance(saved, Saved):
                    self._reply(incoming, dict(saved.__dict__), {}, None, "d")
                else:
                    self._reply(incoming, {}, {}, saved, "d")
            except BusError:
                log.exception("checkpoint %s was written, but its coordinator does not hear it", path)

        watcher = threading.Thread(target=watch, name="checkpoint answer")
        watcher.start()
        self._watchers = [w for w in self._watchers if w.is_alive()] + [watcher]

    def _encode(self, body: Fields) -> Answer:
        model, messages, response = (
            Path(body.take("model", str)),
            body.take("messages", list),
            body.take("response", str),
        )
        body.done()
        if self._encoder is None or self._encoder.model != model:
            self._encoder = Encoder(model, self._blobs.fetch)
        encoded = self._encoder.encode(messages, response)
        return {}, {"prompt": encoded.prompt, "response": encoded.response}


def _flat_details(details: dict[str, object]) -> dict[str, object]:
    """Return all detail fields that the coordinator knows, with nothing for those that do not apply."""
    nothing: dict[str, object] = {
        "have": 0,
        "got": 0,
        "step": 0,
        "what": "",
        "groups": [],
        "traces": [],
        "group": "",
        "reason": "",
    }
    return nothing | details
