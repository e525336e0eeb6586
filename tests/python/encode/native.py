"""The Go side of the comparison: the test binary of internal/encode as a process that answers requests."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

# What the vocabularies of the tests are learnt from.
CORPUS = [
    "How many drusen does the photograph show? A. one B. two C. three D. none",
    "<think>I see three drusen in the upper left quadrant.</think><answer>C</answer>",
    "<think>I see two exudates near the macula, so there are two.</think><answer>B</answer>",
    "Which lesion is in the lower right quadrant? A. haemorrhage B. exudate C. microaneurysm",
] * 8

REPOSITORY = Path(__file__).resolve().parents[3]


class NativeError(Exception):
    """The Go side refused a request; the text is its error."""


@dataclass(frozen=True)
class Picture:
    """An image as the Go side prepared it."""

    grid: tuple[int, int, int]
    raw: bytes

    def pixels(self) -> npt.NDArray[np.uint8]:
        """The bytes as [height, width, 3]."""
        return np.frombuffer(self.raw, np.uint8).reshape(self.grid[1], self.grid[2], 3)

    def patches(self) -> npt.NDArray[np.float32]:
        """The numbers as [t*h*w, 3*2*14*14]."""
        return np.frombuffer(self.raw, np.float32).reshape(int(np.prod(self.grid)), -1)


class Native:
    """One process; requests are answered in order."""

    def __init__(self, binary: Path, scratch: Path) -> None:
        self._scratch = scratch
        self._process = subprocess.Popen(
            [str(binary)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "UADT_ENCODE_PIPE": "1"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        code = self._process.wait(timeout=30)
        if code != 0 and kind is None:
            raise NativeError(f"the Go side ended with code {code}")

    def _ask(self, op: str, **fields: Any) -> dict[str, Any]:
        if self._process.stdin is None or self._process.stdout is None:
            raise NativeError("no pipe")
        self._process.stdin.write(json.dumps({"op": op, **fields}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise NativeError(f"the Go side ended while it was asked to {op}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise NativeError(answer["error"])
        return answer

    def init(self, directory: Path, corpus: Sequence[str], **options: Any) -> str:
        """Writes a fresh micro checkpoint and returns the digest of its weights."""
        return str(self._ask("init", dir=str(directory), texts=list(corpus), options=options)["text"])

    def encode(self, directory: Path, text: str) -> list[int]:
        """The ids of a text."""
        return list(self._ask("encode", dir=str(directory), text=text).get("ids", []))

    def decode(self, directory: Path, ids: Sequence[int], *, skip: bool, stream: bool = False) -> str:
        """The text of ids, at once or joined from the pieces of a stream."""
        op = "stream" if stream else "decode"
        return str(self._ask(op, dir=str(directory), ids=list(ids), skip=skip).get("text", ""))

    def prompt(self, directory: Path, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The ids of a conversation whose images are paths."""
        turns = [
            {
                "role": m["role"],
                "parts": [
                    {"image": {"digest": p["image"]}} if "image" in p else {"text": p["text"]} for p in m["content"]
                ],
            }
            for m in messages
        ]
        return list(self._ask("prompt", dir=str(directory), messages=turns)["ids"])

    def response(self, directory: Path, text: str) -> list[int]:
        """The ids of a target text, the end of the turn included."""
        return list(self._ask("record", dir=str(directory), messages=[], text=text)["ids"])

    def _picture(self, op: str, **fields: Any) -> Picture:
        out = self._scratch / "picture.raw"
        answer = self._ask(op, out=str(out), **fields)
        grid = answer["grid"]
        return Picture((grid[0], grid[1], grid[2]), out.read_bytes())

    def pixels(self, path: Path) -> npt.NDArray[np.uint8]:
        """The decoded image, [height, width, 3]."""
        return self._picture("pixels", path=str(path)).pixels()

    def resize(self, path: Path, height: int, width: int) -> npt.NDArray[np.uint8]:
        """The image at another size, [height, width, 3]."""
        return self._picture("resize", path=str(path), height=height, width=width).pixels()

    def patches(self, directory: Path, path: Path) -> Picture:
        """The image as the vision tower takes it, by the settings of a model directory."""
        return self._picture("image", dir=str(directory), path=str(path))
