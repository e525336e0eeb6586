"""Files of weights: the package safetensors and transformers read what we write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from uadt_trainer import weights
from uadt_trainer.weights import build_directory, digest, open_tensors, stored_digest, write_directory, write_file


def tensors() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return {
        "b.weight": torch.randn(17, 9, generator=g),
        "a.weight": torch.randn(5, 3, 2, generator=g).to(torch.bfloat16),
        "half": torch.randn(7, generator=g).half(),
        "count": torch.tensor([12], dtype=torch.int64),
        "none": torch.zeros(0, 4),
        "turned": torch.randn(6, 4, generator=g).t(),  # not contiguous
    }


@pytest.mark.parametrize("piece", [7, 1 << 26])
def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(weights, "PIECE", piece)
    path, want = tmp_path / "x.safetensors", tensors()
    write_file(path, want, {"step": "4"})
    found = load_file(path)
    assert found.keys() == want.keys()
    for name, tensor in want.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"step": "4"}
    with open_tensors(path) as parts:
        assert torch.equal(parts["b.weight"][3:11], want["b.weight"][3:11])
        assert parts["none"].shape == (0, 4)


def test_directories_of_one_file_and_of_several_have_one_digest(tmp_path: Path) -> None:
    want = {n: t for n, t in tensors().items() if n != "count"}
    write_directory(tmp_path / "one", want, {"config.json": b"{}"})
    build_directory(tmp_path / "several", want, {}, shard=100)
    assert (tmp_path / "several" / weights.INDEX).is_file()
    assert len(weights.weight_files(tmp_path / "several")) > 2
    assert stored_digest(tmp_path / "one") == stored_digest(tmp_path / "several") == digest(want)
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


def test_a_write_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights.os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        write_directory(tmp_path / "model", tensors(), {})
    assert not (tmp_path / "model").exists()
