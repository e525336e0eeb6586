"""How weights and optimizer state leave a rank: published policies and checkpoints."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from .model import Policy
from .optim import AdamW
from .weights import (
    CheckpointError,
    digest,
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
        self._files = side_files(source, policy.head.dtype)
        self._writing: threading.Thread | None = None

    def snapshot(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Return copies of the weights under the names they are published by; later updates do not change them.

        Every rank calls it; ranks that do not write get nothing.
        """
        if not self._write:
            return {}
        return {self._names[n]: t.detach().to(device, copy=True) for n, t in self._policy.tensors().items()}

    def publish(self, name: str) -> tuple[Path, str]:
        """Write the current weights; all but the last two published directories are removed."""
        if not self._write:
            return Path(), ""
        tensors = self.snapshot(HOST)
        found = digest(tensors)
        path = self._root / f"{name}-{found[:12]}"
        self._root.mkdir(parents=True, exist_ok=True)
        write_directory(path, tensors, self._files, durable=False)
        others = sorted((p for p in self._root.iterdir() if p != path), key=lambda p: p.stat().st_mtime_ns)
        for old in others[: max(0, len(others) - KEPT + 1)]:
            shutil.rmtree(old, ignore_errors=True)
        return path.resolve(), found

    def save(self, path: Path, step: int) -> tuple[threading.Event, list[Saved | Exception]]:
        """Copy now and write below path on a thread; the event is set once the list holds how it went."""
        done, outcome = threading.Event(), []
        if not self._write:
            outcome.append(Saved("", step))
            done.set()
            return done, outcome
        self.wait()
        tensors = self.snapshot(HOST)
        state = {n: t.detach().to(HOST, copy=True) for n, t in self._optimizer.state().items()}

        def write() -> None:
            try:
                write_directory(path / "policy", tensors, self._files, durable=True)
                write_tensors(path / OPTIMIZER, state, {"step": str(step)})
                outcome.append(Saved(digest(tensors), step))
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
