"""Weights and optimizer state on disk: safetensors only, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


class CheckpointError(Exception):
    """A checkpoint is not what the caller says it is."""


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}|{str(tensor.dtype).removeprefix('torch.')}|{list(tensor.shape)}|".encode())
        sha.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def write_directory(path: Path, tensors: Mapping[str, torch.Tensor], source: Path) -> None:
    """Write a Hugging Face directory: our tensors beside the config and tokenizer files of source.

    It appears at `path` complete or not at all.
    """
    building = path.with_name(path.name + ".part")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and not file.name.endswith(".safetensors.index.json"):
            shutil.copyfile(file, building / file.name)
    save_file(
        {n: t.detach().cpu().contiguous() for n, t in tensors.items()}, building / "model.safetensors", {"format": "pt"}
    )
    sync(building)
    shutil.rmtree(path, ignore_errors=True)
    building.rename(path)
    _sync_entry(path.parent)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write one safetensors file, whole or not at all."""
    building = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, building)
    _sync_entry(building)
    building.rename(path)
    _sync_entry(path.parent)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read one safetensors file."""
    if not path.is_file():
        message = f"{path}: no such file"
        raise CheckpointError(message)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def sync(directory: Path) -> None:
    """Make every file of a directory, and the directory, durable."""
    for file in directory.iterdir():
        _sync_entry(file)
    _sync_entry(directory)


def _sync_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
