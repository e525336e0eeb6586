"""Fixtures: the Go process, micro checkpoints that it wrote, and transformers' processor for them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native import CORPUS, REPOSITORY, Native
from transformers import AutoProcessor, AutoTokenizer


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Native]:
    """The Go side, built once."""
    scratch = tmp_path_factory.mktemp("native")
    binary = scratch / "encode.test"
    subprocess.run(
        ["go", "test", "-c", "-o", str(binary), "./internal/encode"],
        cwd=REPOSITORY,
        check=True,
    )
    with Native(binary, scratch) as process:
        yield process


@pytest.fixture(scope="session")
def model(native: Native, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A micro checkpoint with the default options."""
    directory = tmp_path_factory.mktemp("model") / "micro"
    native.init(directory, CORPUS, seed=7)
    return directory


@pytest.fixture(scope="session")
def processor(model: Path) -> Any:
    """transformers' processor of the model."""
    return AutoProcessor.from_pretrained(str(model))


@pytest.fixture(scope="session")
def reference(model: Path) -> Any:
    """transformers' tokenizer of the model."""
    return AutoTokenizer.from_pretrained(str(model))


@pytest.fixture
def random(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator whose seed is the test's name."""
    return np.random.default_rng(list(request.node.name.encode()))
