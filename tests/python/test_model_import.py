"""`uadt-train model import`: the original layout in vLLM, and what was imported in transformers, are one model.

The judge of the original is vLLM's own InternVLChatModel with its own image processor, neither of which shares code
with the import. vLLM and the trainer on what was imported are held against transformers on the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor
from vllm.transformers_utils.processors.internvl import InternVLImageProcessor

from engine_server import ROOT, chat_body, program
from original_internvl import MOST_TILES, TILE, write_checkpoint
from test_three_engines import Vllm, logprobs

sys.path.insert(0, str(ROOT / "trainer" / "pytorch"))
from uadt_trainer.encoder import Encoder  # noqa: E402
from uadt_trainer.engine import Engine, EngineOptions, Stage  # noqa: E402
from uadt_trainer.errors import GroupError  # noqa: E402
from uadt_trainer.optim import AdamWOptions  # noqa: E402
from uadt_trainer.types import Group, Part, Shard, Trace  # noqa: E402

TOLERANCE = 1e-5  # of log-probabilities in float32, on the same pixels
TOKENS = 24
TEXT = "what lesion is it? <box>I don't see 42</box> drusen"


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


CASES = {
    "text": [],
    "one image of one tile": [noise(56, 56)],
    "one image that is resized": [noise(50, 47)],
    "one image of four tiles and a thumbnail": [noise(120, 80)],
    "three images": [noise(120, 80), noise(56, 200), noise(56, 56)],
}
TILES = {"text": 0, "one image of one tile": 1, "one image that is resized": 1}
TILES |= {"one image of four tiles and a thumbnail": 5, "three images": 5 + 5 + 1}


@dataclass(frozen=True)
class Imported:
    """A model directory of the original layout, what became of it, and what the program said."""

    source: Path
    target: Path
    said: str

    @property
    def digest(self) -> str:
        return self.said.rsplit("weights sha256 ", 1)[1].strip()


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program(tmp_path_factory.mktemp("program"))


def convert(binary: Path, source: Path) -> Imported:
    target = source.with_name(source.name + "-hf")
    command = [str(binary), "model", "import", str(source), str(target)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Imported(source, target, said)


@pytest.fixture(scope="session")
def imported(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    return convert(binary, write_checkpoint(tmp_path_factory.mktemp("import") / "original"))


@dataclass(frozen=True)
class Served:
    """Stock vLLM on one of the two directories."""

    server: Vllm
    original: bool


@pytest.fixture(scope="session", params=["original", "imported"])
def served(request: pytest.FixtureRequest, imported: Imported) -> Iterator[Served]:
    original = request.param == "original"
    folder = imported.source if original else imported.target
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = ["scripts/vllm-cpu/serve.sh", folder, str(port), folder.with_suffix(".log")]
    # The original brings the class of its configuration.
    command += ["--trust-remote-code"] if original else []
    started = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    pid = int(started.stdout)
    try:
        yield Served(Vllm(f"http://127.0.0.1:{port}"), original)
    finally:
        os.killpg(pid, signal.SIGTERM)


class Reference:
    """transformers on an imported directory, in float32."""

    def __init__(self, folder: Path) -> None:
        loaded = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        self.model, self.loading = loaded
        self.processor = AutoProcessor.from_pretrained(folder)

    def inputs(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        content: list[dict[str, Any]] = [{"type": "image", "image": i} for i in images]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": [*content, {"type": "text", "text": TEXT}]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    @torch.no_grad()
    def logprobs(self, prompt: torch.Tensor, pixels: torch.Tensor | None, taken: list[int]) -> torch.Tensor:
        """[T] of the tokens taken [T] behind prompt [1, P], image tokens left out as the requests do."""
        ids = torch.cat([prompt, torch.tensor([taken])], 1)
        logits = self.model(input_ids=ids, pixel_values=pixels).logits[0, prompt.shape[1] - 1 : -1].double()
        logits[:, self.model.config.image_token_id] -= 100
        return logits.log_softmax(-1).gather(1, torch.tensor(taken)[:, None])[:, 0]


@pytest.fixture(scope="session")
def reference(imported: Imported) -> Reference:
    return Reference(imported.target)


def test_transformers_takes_every_tensor(reference: Reference) -> None:
    assert not any(reference.loading.values()), reference.loading
    assert reference.model.config.vision_config.use_qk_norm is False
    assert reference.model.generation_config.eos_token_id == reference.processor.tokenizer.eos_token_id


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_vllm(served: Served, reference: Reference, case: str) -> None:
    images = CASES[case]
    inputs, banned = reference.inputs(images), reference.model.config.image_token_id
    options = {"seed": 7, "temperature": 1, "max_completion_tokens": TOKENS, "logit_bias": {str(banned): -100}}
    body = chat_body(TEXT, images, **options)
    del body["vllm_xargs"]
    answer = served.server.post("/v1/chat/completions", body)
    assert answer["prompt_token_ids"] == inputs["input_ids"][0].tolist()

    choice, pixels = answer["choices"][0], inputs.get("pixel_values")
    assert TILES[case] == (0 if pixels is None else len(pixels))
    if images and served.original:
        processor = InternVLImageProcessor(TILE, 1, MOST_TILES, True, True)
        theirs = processor(images, return_tensors="pt")["pixel_values_flat"]
        # PIL resizes bytes there and torchvision here: they may round a value to neighbouring bytes.
        levels = (theirs - pixels).abs() * 255 * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        assert levels.max() < 1.01
        pixels = theirs
    ours = reference.logprobs(inputs["input_ids"], pixels, choice["token_ids"])
    assert len(ours) == TOKENS
    assert (ours - logprobs(choice)).abs().max() < TOLERANCE


def rows(folder: Path) -> Counter[str]:
    """Hashes of all tensors of a directory, fused attention in three parts."""
    found: Counter[str] = Counter()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                value = tensors.get_tensor(name)
                for part in value.chunk(3) if ".qkv." in name else (value,):
                    bits = part.contiguous().view(torch.uint8).numpy().tobytes()
                    found[f"{value.dtype} {tuple(part.shape)} {hashlib.sha256(bits).hexdigest()}"] += 1
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_bit_changes(binary: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    whole = convert(binary, write_checkpoint(tmp_path / "whole", dtype, seed=3))
    dealt = convert(binary, write_checkpoint(tmp_path / "dealt", dtype, seed=3, shards=3))
    assert rows(whole.source) == rows(whole.target) == rows(dealt.target)
    assert whole.digest == dealt.digest
    config = json.loads((whole.target / "config.json").read_text())
    assert config["dtype"] == config["text_config"]["dtype"] == str(dtype).removeprefix("torch.")
    model = AutoModelForImageTextToText.from_pretrained(whole.target)
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_the_trainer_packs_what_was_imported(imported: Imported, reference: Reference, tmp_path: Path) -> None:
    blobs: dict[str, bytes] = {}
    encoder, rng = Encoder(imported.target, blobs.__getitem__), np.random.default_rng(5)
    groups, expected = [], []
    for index, (case, images) in enumerate(CASES.items()):
        digests = []
        for n, image in enumerate(images):
            path = tmp_path / f"{index}-{n}.png"
            image.save(path)
            digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
            blobs[digests[-1]] = path.read_bytes()
        parts = [{"text": "", "image": d} for d in digests]
        encoded = encoder.encode([{"role": "user", "parts": [*parts, {"text": TEXT, "image": ""}]}], "the red drusen")
        inputs = reference.inputs(images)
        np.testing.assert_array_equal(encoded.prompt, inputs["input_ids"][0].numpy(), err_msg=case)
        traces = [encoded.response, *(rng.integers(0, 290, n).astype(np.int32) for n in (5, 9))]
        groups.append(
            Group(
                f"g{index}",
                encoded.prompt,
                tuple(digests),
                tuple(Trace(t, np.ones(len(t), bool)) for t in traces),
                index,
            )
        )
        pixels = inputs.get("pixel_values")
        expected += [reference.logprobs(inputs["input_ids"], pixels, t.tolist()) for t in traces]
    banned = reference.model.config.image_token_id
    engine = Engine(EngineOptions(torch.device("cpu"), torch.float32, tmp_path / "work", blobs.__getitem__))
    engine.begin(Stage(incarnation=1, name="rl", model=imported.target, frozen=(), optimizer=AdamWOptions()))
    engine.load(Shard(1, tuple(groups), tuple(Part(0, i, 0, 3) for i in range(len(groups))), 1))
    np.testing.assert_allclose(engine.score(1, 1.0, (banned,)).old, torch.cat(expected).numpy(), atol=TOLERANCE)

    # A prompt that spells a token behind the embedding.
    behind = np.array([reference.processor.tokenizer.convert_tokens_to_ids("<video>")], np.int32)
    spelt = Group("spelt", np.concatenate([groups[0].prompt, behind]), (), groups[0].traces, 0)
    with pytest.raises(GroupError, match="is outside of"):
        engine.load(Shard(2, (spelt,), (Part(0, 0, 0, 3),), 1))
