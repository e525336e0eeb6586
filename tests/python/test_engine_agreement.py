"""The native server and transformers agree on one checkpoint: prompt ids, log-probabilities, entropies, greedy text.

64 prompts with one to three images of many sizes, before and after a change of weights.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from engine_server import Server, chat_body, init_model, program

PROMPTS = 64
TOLERANCE = 1e-4  # the goal; what is measured is below 1e-5
WORDS = "how many drusen does the photograph show in upper lower left right quadrant three none".split()


@dataclass(frozen=True)
class Question:
    """A text and its images."""

    text: str
    images: list[Image.Image]
    temperature: float


def make_questions() -> list[Question]:
    """Draw 64 questions; sizes reach from a few pixels to beyond the pixel budget."""
    draw = random.Random(5)
    noise = np.random.default_rng(5)
    questions = []
    for i in range(PROMPTS):
        images = []
        for _ in range(1 + i % 3):
            width, height = draw.randint(20, 400), draw.randint(20, 400)
            coarse = noise.integers(0, 255, (max(2, height // 9), max(2, width // 9), 3), dtype=np.uint8)
            images.append(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))
        text = " ".join(draw.choices(WORDS, k=draw.randint(1, 40)))
        questions.append(Question(text, images, draw.choice([0.7, 1.0, 1.3])))
    return questions


class Reference:
    """transformers in float32 on a checkpoint directory."""

    def __init__(self, folder: Path) -> None:
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        tokens = AutoTokenizer.from_pretrained(folder)
        self.banned = [tokens.convert_tokens_to_ids(t) for t in ("<|image_pad|>", "<|video_pad|>")]

    def inputs(self, question: Question) -> dict[str, torch.Tensor]:
        """input_ids [1, n], pixel_values [patches, 1176], image_grid_thw [images, 3]."""
        content = [{"type": "image"} for _ in question.images] + [{"type": "text", "text": question.text}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return dict(self.processor(text=[text], images=question.images, return_tensors="pt"))

    @torch.no_grad()
    def logits(self, inputs: dict[str, torch.Tensor], response: list[int]) -> torch.Tensor:
        """Logits [len(response), vocabulary] before each response token, with the banned tokens' bias."""
        ids = torch.cat([inputs["input_ids"], torch.tensor([response])], dim=1)
        types = torch.zeros_like(ids)
        prompt = inputs["input_ids"].shape[1]
        types[:, :prompt] = (ids[:, :prompt] == self.banned[0]).int()
        out = self.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=inputs["pixel_values"],
            image_grid_thw=inputs["image_grid_thw"],
            mm_token_type_ids=types,
        )
        logits = out.logits[0, prompt - 1 : -1].double()
        logits[:, self.banned] -= 100.0
        return logits


@pytest.fixture(scope="module", params=[(), ("--untied",)], ids=["tied", "untied"])
def engines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Path, Path]]:
    """A server and two checkpoints of the same architecture; it starts on the first."""
    folder = tmp_path_factory.mktemp("engine")
    binary = program(folder)
    first = init_model(binary, folder / "first", 1, *request.param)
    second = init_model(binary, folder / "second", 2, *request.param)
    with Server(binary, first) as server:
        yield server, first, second


def sample(server: Server, reference: Reference, question: Question, **options: Any) -> dict[str, Any]:
    bias = {str(i): -100 for i in reference.banned}
    body = chat_body(question.text, question.images, logit_bias=bias, max_completion_tokens=24, **options)
    return server.post("/v1/chat/completions", body)


def check(server: Server, folder: Path, questions: list[Question]) -> dict[str, float]:
    """Compare every question's sampled and greedy answers; return the largest differences."""
    reference = Reference(folder)
    worst = {"logprob": 0.0, "entropy": 0.0}
    for i, question in enumerate(questions):
        inputs = reference.inputs(question)
        answer = sample(server, reference, question, n=2, seed=1024 * i, temperature=question.temperature)
        assert answer["prompt_token_ids"] == inputs["input_ids"][0].tolist()
        for choice in answer["choices"]:
            scaled = reference.logits(inputs, choice["token_ids"]) / question.temperature
            expected = torch.log_softmax(scaled, dim=-1)
            entropy = torch.special.entr(expected.exp()).sum(-1)
            got = torch.tensor([t["logprob"] for t in choice["logprobs"]["content"]], dtype=torch.float64)
            taken = expected.gather(1, torch.tensor(choice["token_ids"])[:, None])[:, 0]
            worst["logprob"] = max(worst["logprob"], (got - taken).abs().max().item())
            got = torch.tensor(choice["token_entropies"], dtype=torch.float64)
            worst["entropy"] = max(worst["entropy"], (got - entropy).abs().max().item())
        choice = sample(server, reference, question, temperature=0)["choices"][0]
        logits = reference.logits(inputs, choice["token_ids"])
        best = logits.max(dim=-1)
        greedy = best.indices.tolist()
        # Where two logits are closer than float32 rounding, either is the highest.
        gap = best.values - logits.gather(1, torch.tensor(choice["token_ids"])[:, None])[:, 0]
        assert greedy == choice["token_ids"] or gap.max().item() < 1e-5
    return worst


def test_agrees_with_transformers(engines: tuple[Server, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    server, first, second = engines
    questions = make_questions()
    report = {"before": check(server, first, questions)}
    update = {"method": "reload_weights", "kwargs": {"weights_path": str(second)}}
    assert server.post("/collective_rpc", update)["results"] == [None]
    report["after"] = check(server, second, questions)
    with capsys.disabled():
        sys.stdout.write(json.dumps({"test": "engine_agreement", "prompts": PROMPTS, **report}) + "\n")
    for worst in report.values():
        assert max(worst.values()) < TOLERANCE
