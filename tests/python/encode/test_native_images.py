"""Image files to patches, against Pillow, torchvision and transformers' image processor."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from native import Native, NativeError
from PIL import Image, ImageOps
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

Pixels = npt.NDArray[np.uint8]


def picture(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """A smooth picture with noise on it, so that both rounding and filters show."""
    small = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray(np.clip(smooth + random.integers(-40, 41, smooth.shape), 0, 255).astype(np.uint8))


def size(random: np.random.Generator, low: int, high: int) -> tuple[int, int]:
    """Two random lengths."""
    return int(random.integers(low, high)), int(random.integers(low, high))


def test_resizing_is_equal_to_the_bit(native: Native, tmp_path: Path, random: np.random.Generator) -> None:
    path = tmp_path / "a.png"
    for i in range(80):
        (w, h), (width, height) = size(random, 1, 400), size(random, 1, 300)
        if i % 8 == 0:
            width = w  # one axis stays
        source = random.integers(0, 256, (h, w, 3), dtype=np.uint8)
        Image.fromarray(source).save(path)
        tensor = torch.from_numpy(source).permute(2, 0, 1)
        want = resize(
            tensor,
            [height, width],
            interpolation=InterpolationMode.BICUBIC,
            antialias=True,
        )
        assert np.array_equal(native.resize(path, height, width), want.permute(1, 2, 0).numpy()), (w, h, width, height)


def test_patches_are_equal_to_the_bit(
    native: Native,
    model: Path,
    processor: Any,
    tmp_path: Path,
    random: np.random.Generator,
) -> None:
    path = tmp_path / "a.png"
    sizes = [
        (84, 84),
        (14, 14),
        (42, 42),
        (70, 70),
        (1, 190),
        (28, 900),
        *(size(random, 8, 500) for _ in range(60)),
    ]
    for width, height in sizes:
        image = picture(random, width, height)
        image.save(path)
        want = processor.image_processor(images=[image], return_tensors="pt")
        got = native.patches(model, path)
        assert list(got.grid) == want["image_grid_thw"][0].tolist(), (width, height)
        assert np.array_equal(got.patches(), want["pixel_values"].numpy()), (
            width,
            height,
        )


LOSSLESS: list[tuple[str, str, dict[str, Any]]] = [
    ("RGB", "png", {}),
    ("RGB", "bmp", {}),
    ("RGB", "tiff", {}),
    ("RGB", "tiff", {"compression": "tiff_lzw"}),
    ("RGB", "tiff", {"compression": "tiff_adobe_deflate"}),
    ("RGB", "webp", {"lossless": True}),
    ("RGB", "webp", {"quality": 30}),
    ("RGB", "webp", {"quality": 90}),
    ("L", "png", {}),
    ("L", "bmp", {}),
    ("L", "tiff", {}),
    ("P", "png", {}),
    ("1", "png", {}),
]


@pytest.mark.parametrize(("mode", "kind", "options"), LOSSLESS)
def test_decoding_is_equal_to_the_bit(
    native: Native,
    tmp_path: Path,
    random: np.random.Generator,
    mode: str,
    kind: str,
    options: dict[str, Any],
) -> None:
    path = tmp_path / f"a.{kind}"
    for width, height in [
        (1, 1),
        (2, 3),
        (17, 16),
        *(size(random, 1, 120) for _ in range(8)),
    ]:
        picture(random, width, height).convert(mode).save(path, **options)
        assert np.array_equal(native.pixels(path), np.asarray(Image.open(path).convert("RGB"))), (width, height)


JPEG: list[dict[str, Any]] = [
    {},
    {"progressive": True},
    {"optimize": True},
    {"restart_marker_blocks": 3},
    {"restart_marker_rows": 1, "progressive": True},
]


@pytest.mark.parametrize("options", JPEG)
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_is_equal_to_the_bit(
    native: Native,
    tmp_path: Path,
    random: np.random.Generator,
    subsampling: int,
    options: dict[str, Any],
) -> None:
    path = tmp_path / "a.jpg"
    for width, height in [
        (1, 1),
        (3, 5),
        (5, 3),
        (17, 16),
        *(size(random, 1, 200) for _ in range(8)),
    ]:
        image = picture(random, width, height)
        image.save(
            path,
            quality=int(random.integers(20, 101)),
            subsampling=subsampling,
            **options,
        )
        assert np.array_equal(native.pixels(path), np.asarray(Image.open(path))), (
            width,
            height,
        )


def test_grey_jpeg_is_equal_to_the_bit(native: Native, tmp_path: Path, random: np.random.Generator) -> None:
    path = tmp_path / "a.jpg"
    for progressive in (False, True):
        picture(random, 90, 61).convert("L").save(path, progressive=progressive)
        assert np.array_equal(native.pixels(path), np.asarray(Image.open(path).convert("RGB")))


def test_cmyk_jpeg_differs_by_rounding_only(native: Native, tmp_path: Path, random: np.random.Generator) -> None:
    # Read by Go's decoder, whose inverse cosine transform rounds otherwise.
    path = tmp_path / "a.jpg"
    picture(random, 90, 61).convert("CMYK").save(path)
    want = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(native.pixels(path) - want).max() <= 1


def test_a_photograph_is_equal_to_the_bit(native: Native, model: Path, processor: Any, tmp_path: Path) -> None:
    # Smooth colours and hard edges at the size of a camera, through decoder, filter and patches.
    y, x = np.mgrid[0:1411, 0:1205]
    disc = (x - 600) ** 2 + (y - 700) ** 2 < 560**2
    vessels = np.abs(np.sin(x / 37 + np.cos(y / 90))) < 0.06
    colour = np.stack([180 - y / 20, 90 + x / 30, 40 + (x + y) / 90], -1) * disc[..., None]
    colour[vessels & disc] *= 0.6
    path = tmp_path / "a.jpg"
    Image.fromarray(colour.astype(np.uint8)).save(path, quality=92)
    want = processor.image_processor(images=[Image.open(path)], return_tensors="pt")
    got = native.patches(model, path)
    assert list(got.grid) == want["image_grid_thw"][0].tolist()
    assert np.array_equal(got.patches(), want["pixel_values"].numpy())


def on_white(image: Image.Image) -> Pixels:
    """What vLLM makes of a picture with transparent parts."""
    rgba = image.convert("RGBA")
    out = Image.new("RGB", image.size, (255, 255, 255))
    out.paste(rgba, mask=rgba.split()[3])
    return np.asarray(out)


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_transparent_parts_are_white(native: Native, tmp_path: Path, random: np.random.Generator, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    image = picture(random, 40, 31)
    image.putalpha(Image.fromarray(random.integers(0, 256, (31, 40), dtype=np.uint8)))
    image.save(path, **({"lossless": True, "exact": True} if kind == "webp" else {}))
    assert np.array_equal(native.pixels(path), on_white(Image.open(path)))


def test_a_transparent_colour_of_a_palette_is_white(
    native: Native, tmp_path: Path, random: np.random.Generator
) -> None:
    path = tmp_path / "a.png"
    picture(random, 40, 31).convert("P").save(path, transparency=3)
    assert np.array_equal(native.pixels(path), on_white(Image.open(path)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff"])
def test_exif_orientation_is_applied(
    native: Native,
    tmp_path: Path,
    random: np.random.Generator,
    kind: str,
    orientation: int,
) -> None:
    path = tmp_path / f"a.{kind}"
    image = picture(random, 33, 20)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **({"lossless": True} if kind == "webp" else {}))
    want = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")).astype(int)
    got = native.pixels(path)
    assert got.shape == want.shape
    assert np.array_equal(got, want)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff", "bmp"])
def test_a_truncated_file_is_refused(native: Native, tmp_path: Path, random: np.random.Generator, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    picture(random, 64, 48).save(path)
    data = path.read_bytes()
    for share in (0.0, 0.01, 0.3, 0.7):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(NativeError, match="bad image"):
            native.pixels(path)


def test_a_bomb_is_refused_by_its_header(native: Native, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    with pytest.raises(NativeError, match="40000 x 40000 pixels: too many pixels"):
        native.pixels(path)
