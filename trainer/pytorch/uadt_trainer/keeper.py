"""How weights and optimizer state leave a rank: published policies and checkpoints."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from . import lora
from .errors import CommandError
from .model import Policy
from .optim import AdamW
from .sharding import whole
from .weights import (
    SINGLE,
    CheckpointError,
    build_directory,
    digest,
    place_directory,
    published_names,
    read_metadata,
    side_files,
    stored_names,
    write_directory,
    write_tensors,
)

KEPT = 2  # published directories that stay: the last and the one before it
HOST = torch.device("cpu")
OPTIMIZER = "optimizer.safetensors"


@dataclass(frozen=True)
class Saved:
    """A durable checkpoint."""

    digest: str
    step: int
    policy: str = "policy"
    optimizer: str = OPTIMIZER
    adapter: str = ""  # digest of the policy as an adapter on its base, where there is one


def resume_step(directory: Path) -> int:
    """Return the optimizer step that a checkpoint stands at."""
    step = read_metadata(directory / OPTIMIZER).get("step", "")
    if not step.isdecimal():
        message = f"{directory / OPTIMIZER}: no step in its metadata"
        raise CheckpointError(message)
    return int(step)


class Keeper:
    """Writes the policy and optimizer of one stage. Ranks that do not write only answer."""

    def __init__(self, work: Path, source: Path, policy: Policy, optimizer: AdamW, write: bool) -> None:
        self._root = work / "policies"
        self._policy, self._optimizer, self._write = policy, optimizer, write
        self._names = published_names(policy.tensors(), stored_names(source))
        self._files = side_files(source, policy.dtype)
        self._writing: threading.Thread | None = None

    def snapshot(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Return copies of the weights under the names they are published by; later updates do not change them.

        Every rank calls it; ranks that do not write get nothing.
        """
        return self._copies(((self._names[n], t) for n, t in self._weights()), device)

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Go through the weights by the model's names, in the type it computes in, adapters merged."""
        adapters, master = self._policy.adapters, self._optimizer.master
        for name, tensor in self._policy.tensors().items():
            weight = tensor.detach()
            yield name, (adapters.merge(name, weight, master) if adapters else weight).to(self._policy.dtype)

    def _copies(self, tensors: Iterable[tuple[str, torch.Tensor]], device: torch.device) -> dict[str, torch.Tensor]:
        """Copy tensors, put together one after the other where they are cut over ranks."""
        out = {}
        for name, tensor in tensors:
            part = whole(tensor)
            if self._write:
                out[name] = part.to(device, copy=True)
        return out

    def publish(self, name: str) -> tuple[Path, str]:
        """Write the current weights; all but the last two published directories are removed."""
        tensors = self.snapshot(HOST)
        if not self._write:
            return Path(), ""
        return self._put(name, tensors, self._files, digest)

    def publish_adapter(self, name: str) -> tuple[Path, str]:
        """Write the current adapters alone, as peft does; directories are removed as by publish."""
        adapters = self._policy.adapters
        if adapters is None:
            message = "the stage trains no adapters, so none can be published"
            raise CommandError(message)
        if not self._write:
            return Path(), ""
        tensors = adapters.snapshot(HOST)
        return self._put(name, tensors, adapters.config(), adapters.digest, lora.WEIGHTS)

    def _put(
        self,
        name: str,
        tensors: Mapping[str, torch.Tensor],
        files: Mapping[str, bytes],
        digest_of: Callable[[Mapping[str, torch.Tensor]], str],
        single: str = SINGLE,
    ) -> tuple[Path, str]:
        """Write a directory that is offered. It need not be durable: it is read at once, and made again after a crash.

        One thread can hash 1 to 2 GB/s and no more than one can, so the others write meanwhile.
        """
        building = self._root / f"{name}.part"
        with ThreadPoolExecutor(1) as hashing:
            pending = hashing.submit(digest_of, tensors)
            build_directory(building, tensors, files, single=single)
            found = pending.result()
        path = self._root / f"{name}-{found[:12]}"
        place_directory(building, path)
        others = sorted((p for p in self._root.iterdir() if p != path), key=lambda p: p.stat().st_mtime_ns)
        for old in others[: max(0, len(others) - KEPT + 1)]:
            shutil.rmtree(old, ignore_errors=True)
        return path.resolve(), found

    def save(self, path: Path, step: int) -> tuple[threading.Event, list[Saved | Exception]]:
        """Copy now and write below path on a thread; the event is set once the list holds how it went."""
        done, outcome = threading.Event(), []
        self.wait()
        tensors = self.snapshot(HOST)
        state = self._copies(self._optimizer.state().items(), HOST)
        if not self._write:
            outcome.append(Saved("", step))
            done.set()
            return done, outcome
        metadata, adapters = {"step": str(step)}, self._policy.adapters
        if adapters:
            metadata["base"] = adapters.base.digest
            alone = adapters.snapshot(HOST)

        def write() -> None:
            try:
                write_directory(path / "policy", tensors, self._files)
                if adapters:
                    write_directory(path / "adapter", alone, adapters.config(), lora.WEIGHTS)
                write_tensors(path / OPTIMIZER, state, metadata)
                outcome.append(Saved(digest(tensors), step, adapter=adapters.digest(alone) if adapters else ""))
            except Exception as error:  # noqa: BLE001 - reported to whoever waits
                outcome.append(error)
            done.set()

        self._writing = threading.Thread(target=write, name="checkpoint")
        self._writing.start()
        return done, outcome

    def wait(self) -> None:
        """Return when no checkpoint is being written."""
        if self._writing is not None:
            self._writing.join()
