"""Weights and optimizer state on disk: safetensors only, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD = 5_000_000_000  # bytes of a weight file, as in published checkpoints
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}
PIECE = 1 << 26  # bytes that are written at once
WRITERS = 4  # pieces that are being written; one thread copies 1 to 3 GB/s into the page cache


class CheckpointError(Exception):
    """A checkpoint is not what the caller says it is."""


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    r"""Return the SHA-256 over all tensors in the order of their names.

    Each is `name\ndtype\nd0,d1\nbytecount\n` and its bytes, as Go's checkpoint.Digest has it.
    """
    sha = hashlib.sha256()
    for name in sorted(tensors):
        data = _bytes(tensors[name])
        sha.update(_heading(name, NAMES[tensors[name].dtype], tensors[name].shape, len(data)))
        sha.update(data)
    return sha.hexdigest()


def _heading(name: str, dtype: str, shape: Iterable[int], size: int) -> bytes:
    return f"{name}\n{dtype}\n{','.join(map(str, shape))}\n{size}\n".encode()


def weight_files(directory: Path) -> list[Path]:
    """List the weight files of a model directory."""
    index = directory / INDEX
    if index.is_file():
        return [directory / f for f in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    message = f"{directory}: neither {SINGLE} nor {INDEX}"
    raise CheckpointError(message)


def _entries(directory: Path) -> dict[str, tuple[Path, int, dict]]:
    """Map each tensor name to its file, the start of the file's data, and its header entry."""
    found: dict[str, tuple[Path, int, dict]] = {}
    for path in weight_files(directory):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > 100_000_000:
                message = f"{path}: header of {length} bytes"
                raise CheckpointError(message)
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found.update({name: (path, 8 + length, entry) for name, entry in header.items()})
    return found


def stored_names(directory: Path) -> set[str]:
    """Return the tensor names of a model directory."""
    return set(_entries(directory))


def stored_digest(directory: Path) -> str:
    """Return the digest of a model directory's weights as they are stored."""
    sha = hashlib.sha256()
    for name, (path, base, entry) in sorted(_entries(directory).items()):
        start, stop = entry["data_offsets"]
        sha.update(_heading(name, entry["dtype"], entry["shape"], stop - start))
        with path.open("rb") as file:
            file.seek(base + start)
            left = stop - start
            while left:
                piece = file.read(min(left, 1 << 24))
                if not piece:
                    message = f"{path}: ends inside {name}"
                    raise CheckpointError(message)
                sha.update(piece)
                left -= len(piece)
    return sha.hexdigest()


# transformers renames what it loads; these take its names back to those of checkpoints in use.
RENAMINGS: tuple[tuple[str, str], ...] = (
    ("model.language_model.", "model."),
    ("model.visual.", "visual."),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def published_names(names: Iterable[str], stored: set[str]) -> dict[str, str]:
    """Map each of the model's names to that of the directory it came from."""
    out = {}
    for name in names:
        renamed = (new + name.removeprefix(old) for old, new in RENAMINGS if name.startswith(old))
        found = next((n for n in (name, *renamed) if n in stored), None)
        if found is None:
            message = f"{name} has no tensor in the source checkpoint"
            raise CheckpointError(message)
        out[name] = found
    if len(set(out.values())) != len(out):
        message = "two tensors of the model have one name in the source checkpoint"
        raise CheckpointError(message)
    return out


def side_files(source: Path, dtype: torch.dtype) -> dict[str, bytes]:
    """Read everything but the weights; config.json is touched only if it names another element type."""
    files = {
        f.name: f.read_bytes()
        for f in source.iterdir()
        if f.is_file() and f.suffix not in (".safetensors", ".bin", ".pt", ".pth") and f.name != INDEX
    }
    config = json.loads(files["config.json"])
    name = str(dtype).removeprefix("torch.")
    stale = [k for k in ("dtype", "torch_dtype") if k in config and config[k] != name]
    if stale:
        files["config.json"] = (json.dumps(config | dict.fromkeys(stale, name), indent=2) + "\n").encode()
    return files


def write_directory(
    path: Path, tensors: Mapping[str, torch.Tensor], files: Mapping[str, bytes], single: str = SINGLE
) -> None:
    """Write a Hugging Face directory of tensors and side files, durably; it appears complete or not at all."""
    building = path.with_name(path.name + ".part")
    build_directory(building, tensors, files, single=single)
    sync(building)
    place_directory(building, path)
    _sync_entry(path.parent)


def build_directory(
    building: Path,
    tensors: Mapping[str, torch.Tensor],
    files: Mapping[str, bytes],
    shard: int = SHARD,
    single: str = SINGLE,
) -> None:
    """Write what place_directory makes a Hugging Face directory; `single` names the weights that fit one file."""
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    for name, data in files.items():
        (building / name).write_bytes(data)
    shards: list[dict[str, torch.Tensor]] = [{}]
    room = shard
    for name in sorted(tensors):
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and size > room:
            shards.append({})
            room = shard
        shards[-1][name] = tensor
        room -= size
    if len(shards) == 1:
        write_file(building / single, shards[0], {"format": "pt"})
    else:
        _write_shards(building, shards)


def place_directory(building: Path, path: Path) -> None:
    """Give a directory that is complete its name."""
    shutil.rmtree(path, ignore_errors=True)
    building.rename(path)


def _write_shards(building: Path, shards: list[dict[str, torch.Tensor]]) -> None:
    weight_map, total = {}, 0
    for i, tensors in enumerate(shards, start=1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_file(building / name, tensors, {"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
        total += sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (building / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write one safetensors file, durably, whole or not at all."""
    building = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(building, tensors, metadata)
    _sync_entry(building)
    building.rename(path)
    _sync_entry(path.parent)


def write_file(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, several pieces at a time.

    The package's own writer keeps Python's lock, so that nothing else, a digest or the next command,
    goes on meanwhile.
    """
    # Wide elements first, as the package has it, so that each tensor is aligned to its elements.
    names = sorted(tensors, key=lambda n: (-tensors[n].element_size(), n))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    views, at = [], 0
    for name in names:
        view = _bytes(tensors[name])
        offsets = [at, at + len(view)]
        header[name] = {
            "dtype": NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": offsets,
        }
        views.append((at, view))
        at += len(view)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    base = 8 + len(text)
    with path.open("wb") as file, ThreadPoolExecutor(WRITERS) as pool:
        file.write(struct.pack("<Q", len(text)) + text)
        file.flush()
        file.truncate(base + at)
        pieces = [(base + start + i, view[i : i + PIECE]) for start, view in views for i in range(0, len(view), PIECE)]
        # Taking every result raises what went wrong in any.
        list(pool.map(lambda piece: _write_piece(file.fileno(), *piece), pieces))


def _write_piece(descriptor: int, at: int, data: memoryview) -> None:
    while data:
        count = os.pwrite(descriptor, data, at)
        at, data = at + count, data[count:]


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Return what a tensor's elements are in memory."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


class Rows(Protocol):
    """A tensor of which rows can be taken, whether it is in memory or in a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its whole shape."""

    def __getitem__(self, rows: slice) -> torch.Tensor: ...


class _Stored:
    """A tensor in an open safetensors file."""

    def __init__(self, part: Any) -> None:
        self._part = part
        self.shape = tuple(part.get_shape())

    def __getitem__(self, rows: slice) -> torch.Tensor:
        return self._part[rows]


@contextmanager
def open_tensors(path: Path) -> Iterator[dict[str, Rows]]:
    """Open one safetensors file; rows are read when they are taken, so that a rank reads its own only."""
    if not path.is_file():
        message = f"{path}: no such file"
        raise CheckpointError(message)
    with safe_open(path, framework="pt") as file:
        yield {name: _Stored(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of one safetensors file and none of its tensors."""
    if not path.is_file():
        message = f"{path}: no such file"
        raise CheckpointError(message)
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


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
