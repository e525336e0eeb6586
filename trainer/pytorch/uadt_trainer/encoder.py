"""Text and images of a record to tokens, through the model's own processor."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoProcessor

from .errors import CommandError
from .frames import Fields
from .images import ImageError


@dataclass(frozen=True)
class Encoded:
    """A tokenised record."""

    prompt: np.ndarray  # [P] int32, after image expansion
    response: np.ndarray  # [T] int32, end-of-sequence token included


class Encoder:
    """Encodes records for one model directory."""

    def __init__(self, model: Path, fetch: Callable[[str], bytes]) -> None:
        self.model = model
        self._processor = AutoProcessor.from_pretrained(model, local_files_only=True)
        self._fetch = fetch

    def encode(self, messages: list[Any], response: str) -> Encoded:
        """Render messages with the generation prompt, expand images, tokenise the response and end it."""
        chat = [self._message(m) for m in messages]
        inputs = self._processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="np"
        )
        tokenizer = self._processor.tokenizer
        if tokenizer.eos_token_id is None:
            message = f"{self.model}: the tokenizer has no end-of-sequence token"
            raise CommandError(message)
        ids = tokenizer(response, add_special_tokens=False)["input_ids"]
        return Encoded(
            np.asarray(inputs["input_ids"][0], dtype=np.int32),
            np.asarray([*ids, tokenizer.eos_token_id], dtype=np.int32),
        )

    def _message(self, value: Any) -> dict[str, Any]:
        f = Fields("message", value)
        role, parts = f.take("role", str), f.take("parts", list)
        f.done()
        return {"role": role, "content": [self._part(p) for p in parts]}

    def _part(self, value: Any) -> dict[str, Any]:
        f = Fields("part", value)
        text, digest = f.take("text", str), f.take("image", str)
        f.done()
        if not digest:
            return {"type": "text", "text": text}
        try:
            image = Image.open(io.BytesIO(self._fetch(digest))).convert("RGB")
        except OSError as error:
            message = f"image {digest}: {error}"
            raise ImageError(message) from error
        return {"type": "image", "image": image}
