"""Frames: safetensors with a strict JSON message in the metadata.

`__metadata__` is {"schema": name, "version": major, "message": JSON}. Tensors
that are not asked for are ignored; a missing one is an error that names it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

VERSION = 1
COMMAND = "uadt.trainer-command"
ANSWER = "uadt.trainer-answer"


class FrameError(Exception):
    """Bytes that are not the frame they should be."""


@dataclass(frozen=True)
class Frame:
    """A message and its tensors."""

    message: dict[str, Any]
    tensors: dict[str, np.ndarray]

    def tensor(self, name: str, dtype: type) -> np.ndarray:
        """Return a vector by name; one that is missing or of another type or shape is an error."""
        if name not in self.tensors:
            message = f"the frame has no tensor {name}"
            raise FrameError(message)
        value = self.tensors[name]
        if value.dtype != dtype or value.ndim != 1:
            message = f"tensor {name} is {value.dtype} of {value.ndim} axes, want a vector of {np.dtype(dtype)}"
            raise FrameError(message)
        return value


def encode(schema: str, message: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> bytes:
    """Render a frame."""
    text = json.dumps(message, allow_nan=False)
    metadata = {"schema": schema, "version": str(VERSION), "message": text}
    return save({n: np.ascontiguousarray(t) for n, t in tensors.items()}, metadata)


def decode(schema: str, data: bytes) -> Frame:
    """Read a frame of the given schema; a higher major version is refused."""
    if len(data) < 8:
        message = f"{len(data)} bytes are no frame"
        raise FrameError(message)
    (length,) = struct.unpack("<Q", data[:8])
    if length > len(data) - 8:
        message = f"header of {length} bytes in a frame of {len(data)}"
        raise FrameError(message)
    try:
        tensors = load(data)
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        found = (metadata.get("schema"), metadata.get("version"))
        if found != (schema, str(VERSION)):
            message = f"schema {found[0]} version {found[1]}, want {schema} version {VERSION}"
            raise FrameError(message)
        body = json.loads(metadata.get("message", ""))
    except (SafetensorError, ValueError) as error:
        message = f"not a frame: {error}"
        raise FrameError(message) from error
    if not isinstance(body, dict):
        message = "the frame's message is no JSON object"
        raise FrameError(message)
    return Frame(body, tensors)


class Fields:
    """A JSON object read strictly: every key is asked for, none is left over."""

    def __init__(self, where: str, value: Any) -> None:
        if not isinstance(value, dict):
            message = f"{where} is {type(value).__name__}, want an object"
            raise FrameError(message)
        self._where, self._rest = where, dict(value)

    def take(self, name: str, kind: type | tuple[type, ...]) -> Any:
        """Return the value of a key that must be there."""
        if name not in self._rest:
            message = f"{self._where} has no {name}"
            raise FrameError(message)
        value = self._rest.pop(name)
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            message = f"{self._where}.{name} is {type(value).__name__}"
            raise FrameError(message)
        return value

    def numbers(self, name: str) -> tuple[int, ...]:
        """Return a list of whole numbers."""
        value = self.take(name, list)
        if not all(type(x) is int for x in value):
            message = f"{self._where}.{name} holds something other than whole numbers"
            raise FrameError(message)
        return tuple(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts."""
        value = self.take(name, list)
        if not all(isinstance(x, str) for x in value):
            message = f"{self._where}.{name} holds something other than text"
            raise FrameError(message)
        return tuple(value)

    def done(self) -> None:
        """Refuse keys that nobody asked for."""
        if self._rest:
            message = f"{self._where} has unknown keys {sorted(self._rest)}"
            raise FrameError(message)
