"""The native engine's server as a process, and chat requests to it."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def program(folder: Path) -> Path:
    """Build uadt-train into folder, unless UADT_TRAIN names one that is built."""
    if given := os.environ.get("UADT_TRAIN"):
        return Path(given)
    binary = folder / "uadt-train"
    subprocess.run(["go", "build", "-o", str(binary), "./cmd/uadt-train"], cwd=ROOT, check=True)
    return binary


def init_model(binary: Path, out: Path, seed: int, *extra: str) -> Path:
    """Write a micro checkpoint."""
    command = [str(binary), "model", "init", "--out", str(out), "--seed", str(seed), *extra]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


class Server:
    """`uadt-train serve` on a free port of this machine."""

    def __init__(self, binary: Path, model: Path) -> None:
        self._process = subprocess.Popen(
            [str(binary), "serve", "--model", str(model), "--addr", "127.0.0.1:0"],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.url = ""
        if self._process.stderr is None:
            raise RuntimeError("no pipe")
        for line in self._process.stderr:
            if line.startswith("serving "):
                self.url = line.rsplit(" ", 1)[1].strip()
                return
        raise RuntimeError(f"the server ended with code {self._process.wait(timeout=30)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST JSON and read JSON."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.loads(response.read() or b"null")


def data_url(image: Image.Image) -> str:
    """Encode an image losslessly as a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def chat_body(text: str, images: list[Image.Image], **options: Any) -> dict[str, Any]:
    """Build a chat request that returns ids, log-probabilities and exact entropies."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(i)}} for i in images]
    parts.append({"type": "text", "text": text})
    return {
        "model": "policy",
        "messages": [{"role": "user", "content": parts}],
        "logprobs": True,
        "top_logprobs": 0,
        "return_token_ids": True,
        "ignore_eos": True,
        "vllm_xargs": {"entropy": True},
        **options,
    }
