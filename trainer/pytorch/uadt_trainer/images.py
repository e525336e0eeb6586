"""Images by digest: bytes from an injected store, prepared by the model's own processor."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoImageProcessor

from .model import QWEN, Pixels, Policy

CACHE = 256  # prepared images kept: a group's images come back at every step of an epoch


class ImageError(Exception):
    """An image is not in the store, or its bytes are not an image."""


@dataclass(frozen=True)
class _Prepared:
    values: torch.Tensor
    grid: tuple[int, int, int] | None


class ImageSource:
    """Prepares images for a model family. `fetch` returns the bytes of a digest."""

    def __init__(self, model: Path, family: str, fetch: Callable[[str], bytes], max_pixels: int = 0) -> None:
        if family == QWEN:
            # The rule that the coordinator's own decoder follows, to the bit.
            options = {"max_pixels": max_pixels} if max_pixels else {}
            self._processor = AutoImageProcessor.from_pretrained(model, backend="pil", **options)
            self._options = {}
        else:
            # The family's processor cuts images into tiles; its image processor alone would not.
            self._processor = AutoImageProcessor.from_pretrained(model)
            self._options = {"crop_to_patches": True}
        self._family = family
        self._fetch = fetch
        self._cache: OrderedDict[str, _Prepared] = OrderedDict()

    def grids(self, digests: Sequence[str]) -> list[tuple[int, int, int]]:
        """Return the grid (t, h, w) of each image, in patches; InternVL has none."""
        return [p.grid for p in map(self._prepare, digests) if p.grid is not None]

    def tokens(self, digests: Sequence[str], policy: Policy) -> int:
        """Return how many prompt tokens the images take, by the model's own rule."""
        return sum(policy.image_tokens(self.pixels([d])) for d in digests)

    def pixels(self, digests: Sequence[str]) -> Pixels | None:
        """Return all images in one tensor, or None when there are none."""
        if not digests:
            return None
        prepared = [self._prepare(d) for d in digests]
        grids = [p.grid for p in prepared if p.grid is not None]
        return Pixels(
            values=torch.cat([p.values for p in prepared]),
            grids=torch.tensor(grids, dtype=torch.int64) if grids else None,
        )

    def _prepare(self, digest: str) -> _Prepared:
        if digest in self._cache:
            self._cache.move_to_end(digest)
            return self._cache[digest]
        try:
            image = Image.open(io.BytesIO(self._fetch(digest))).convert("RGB")
        except OSError as error:
            message = f"image {digest}: {error}"
            raise ImageError(message) from error
        inputs = self._processor(images=[image], return_tensors="pt", **self._options)
        grid = None
        if "image_grid_thw" in inputs:
            t, h, w = (int(x) for x in inputs["image_grid_thw"][0])
            grid = (t, h, w)
        prepared = _Prepared(inputs["pixel_values"], grid)
        self._cache[digest] = prepared
        if len(self._cache) > CACHE:
            self._cache.popitem(last=False)
        return prepared
