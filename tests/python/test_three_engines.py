"""One trained checkpoint in three engines: the native server, transformers and stock vLLM agree.

64 prompts with one to three images, JPEG and PNG, of many sizes, under the weights after SFT and, reloaded into both
running servers, after RL. scripts/test-vllm.sh hands over the vLLM that its other tests use (UADT_VLLM_URL, on a
checkpoint whose side files are ours); without one, this starts its own on the trained checkpoint.
"""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from engine_server import ROOT, Server, program
from test_engine_agreement import PROMPTS, TOLERANCE, Question, Reference, make_questions
from tiny_run import policies, train

TOKENS = 24


@dataclass
class Vllm:
    """A stock vLLM server."""

    url: str

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST JSON and read JSON."""
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data, kind), timeout=300) as response:
            return json.loads(response.read() or b"null")


@dataclass(frozen=True)
class Engines:
    """Two servers, and the checkpoints of a training run that they are given."""

    native: Server
    vllm: Vllm
    checkpoints: tuple[Path, Path]  # after SFT, after RL


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Path, Path]]:
    """The program, and the checkpoints after SFT and after RL of a tiny run."""
    folder = tmp_path_factory.mktemp("three")
    binary = program(folder)
    found = policies(train(binary, folder))
    return binary, (next(p for p in found if p.parent.name == "step-000053"), found[-1])


@pytest.fixture(scope="session")
def vllm(trained: tuple[Path, tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """A vLLM server: the one that is handed over, or one of its own."""
    if url := os.environ.get("UADT_VLLM_URL"):
        yield Vllm(url)
        return
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log"
    command = [str(ROOT / "scripts" / "vllm-cpu" / "serve.sh"), str(trained[1][0]), str(port), str(log)]
    pid = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    try:
        yield Vllm(f"http://127.0.0.1:{port}")
    finally:
        os.killpg(pid, signal.SIGTERM)


@pytest.fixture(scope="session")
def engines(trained: tuple[Path, tuple[Path, Path]], vllm: Vllm) -> Iterator[Engines]:
    binary, checkpoints = trained
    with Server(binary, checkpoints[0]) as native:
        yield Engines(native, vllm, checkpoints)


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=90)
    return buffer.getvalue()


@dataclass(frozen=True)
class Picture:
    """An image file, and what every engine should see in it."""

    url: str
    image: Image.Image


def pictures(question: Question, index: int) -> list[Picture]:
    """Encode the images of a question, every other one as JPEG with colour at half the resolution."""
    found = []
    for i, image in enumerate(question.images):
        kind = "JPEG" if (index + i) % 2 else "PNG"
        data = encoded(image, kind)
        url = f"data:image/{kind.lower()};base64," + base64.b64encode(data).decode()
        found.append(Picture(url, Image.open(io.BytesIO(data)).convert("RGB")))
    return found


def body(question: Question, shown: list[Picture], banned: list[int], **options: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": p.url}} for p in shown]
    return {
        "model": "policy",
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": question.text}]}],
        "logprobs": True,
        "top_logprobs": 0,
        "return_token_ids": True,
        "ignore_eos": True,
        "max_completion_tokens": TOKENS,
        "logit_bias": {str(i): -100 for i in banned},
        **options,
    }


def logprobs(choice: dict[str, Any]) -> torch.Tensor:
    """[tokens], as the server gives them."""
    return torch.tensor([t["logprob"] for t in choice["logprobs"]["content"]], dtype=torch.float64)


def reference_error(expected: torch.Tensor, choice: dict[str, Any]) -> float:
    """Largest difference from log-softmax values expected [tokens, V] of the tokens that were chosen."""
    taken = expected.gather(1, torch.tensor(choice["token_ids"])[:, None])[:, 0]
    return (logprobs(choice) - taken).abs().max().item()


def check(engines: Engines, folder: Path, questions: list[Question]) -> dict[str, float]:
    """Compare greedy and sampled answers of three engines on folder; return the largest differences."""
    reference = Reference(folder)
    shown = [pictures(question, i) for i, question in enumerate(questions)]

    def ask(server: Server | Vllm, **options: Any) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(8) as pool:
            jobs = [
                pool.submit(
                    server.post,
                    "/v1/chat/completions",
                    body(q, p, reference.banned, seed=1024 * i, **options),
                )
                for i, (q, p) in enumerate(zip(questions, shown, strict=True))
            ]
            return [job.result() for job in jobs]

    worst = {"native": 0.0, "vllm": 0.0, "native and vllm": 0.0}
    greedy = {name: ask(server, temperature=0) for name, server in (("native", engines.native), ("vllm", engines.vllm))}
    sampled = {
        name: ask(server, temperature=1, top_p=1, top_k=0)
        for name, server in (("native", engines.native), ("vllm", engines.vllm))
    }
    for i, (question, images) in enumerate(zip(questions, shown, strict=True)):
        inputs = reference.inputs(Question(question.text, [p.image for p in images], 1.0))
        prompt = inputs["input_ids"][0].tolist()
        ours, theirs = greedy["native"][i]["choices"][0], greedy["vllm"][i]["choices"][0]
        for name in ("native", "vllm"):
            assert greedy[name][i]["prompt_token_ids"] == prompt, (name, i)
            for answer in (greedy[name][i], sampled[name][i]):
                choice = answer["choices"][0]
                expected = reference.logits(inputs, choice["token_ids"]).log_softmax(-1)
                worst[name] = max(worst[name], reference_error(expected, choice))
        logits = reference.logits(inputs, ours["token_ids"])
        gap = logits.max(-1).values - logits.gather(1, torch.tensor(ours["token_ids"])[:, None])[:, 0]
        assert logits.argmax(-1).tolist() == ours["token_ids"] or gap.max().item() < 1e-5, i
        if ours["token_ids"] != theirs["token_ids"]:
            # Only where two logits are closer than float32 rounding may either be the highest.
            at = next(
                k for k, pair in enumerate(zip(ours["token_ids"], theirs["token_ids"], strict=True)) if len({*pair}) > 1
            )
            tie = logits[at, ours["token_ids"][at]] - logits[at, theirs["token_ids"][at]]
            assert abs(tie.item()) < 1e-5, (i, at, tie)
            continue
        assert ours["message"]["content"].rstrip("\ufffd") == theirs["message"]["content"].rstrip("\ufffd")
        worst["native and vllm"] = max(worst["native and vllm"], (logprobs(ours) - logprobs(theirs)).abs().max().item())
    return worst


def test_three_engines_agree(engines: Engines, capsys: pytest.CaptureFixture[str]) -> None:
    questions = make_questions()
    report = {}
    for when, folder in zip(("after SFT", "after RL"), engines.checkpoints, strict=True):
        update = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        for server in (engines.native, engines.vllm):
            assert server.post("/pause?mode=wait&clear_cache=true", {}) is not None
            assert server.post("/collective_rpc", update)["results"] == [None]
            server.post("/resume", {})
        report[when] = check(engines, folder, questions)
    with capsys.disabled():
        sys.stdout.write(json.dumps({"test": "three_engines", "prompts": PROMPTS, **report}) + "\n")
    for worst in report.values():
        assert max(worst.values()) < TOLERANCE, report
    after_sft, after_rl = (Reference(folder).model.state_dict() for folder in engines.checkpoints)
    assert any(not torch.equal(after_sft[name], after_rl[name]) for name in after_sft), "RL changed no weight"


def test_side_files_are_those_that_vllm_started_on(engines: Engines) -> None:
    """A server that was handed over started on other weights, but on the same architecture, tokenizer and images."""
    started = os.environ.get("UADT_VLLM_WEIGHTS", str(engines.checkpoints[0])).split(":")[0]
    for name in ("config.json", "tokenizer.json", "preprocessor_config.json", "tokenizer_config.json"):
        assert (Path(started) / name).read_bytes() == (engines.checkpoints[0] / name).read_bytes(), name
