"""The engine trains a micro InternVL: packed equals naive, names and digests are those of the source."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import micro_internvl
import numpy as np
import pytest
import torch
from conftest import Store, advantages, options, shard, stage
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from uadt_trainer.encoder import Encoder
from uadt_trainer.engine import Engine
from uadt_trainer.errors import GroupError
from uadt_trainer.types import Group, Trace
from uadt_trainer.weights import stored_digest

Make = Callable[[], Engine]


@pytest.fixture(scope="module")
def intern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_internvl.write_checkpoint(tmp_path_factory.mktemp("models") / "intern")


def groups(model: Path, store: Store) -> tuple[list[Group], list[torch.Tensor | None]]:
    """One image of five tiles, one of a single tile, and none; with their pixels."""
    encoder, processor = Encoder(model, store.fetch), AutoProcessor.from_pretrained(model)
    rng = np.random.default_rng(3)
    made, pixels = [], []
    for index, size in enumerate(((120, 80), (50, 50), None)):
        parts = [{"text": "what lesion is it", "image": ""}]
        content: list[dict] = [{"type": "text", "text": "what lesion is it"}]
        digests: tuple[str, ...] = ()
        if size:
            digests = (store.add(*size, index),)
            parts.append({"text": "", "image": digests[0]})
            content.append({"type": "image", "image": Image.open(io.BytesIO(store.blobs[digests[0]]))})
        encoded = encoder.encode([{"role": "user", "parts": parts}], "the red drusen")
        naive = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        np.testing.assert_array_equal(encoded.prompt, naive["input_ids"][0].numpy())
        assert encoded.response[-1] == processor.tokenizer.eos_token_id
        pixels.append(naive.get("pixel_values"))
        traces = [encoded.response, *(rng.integers(0, 290, n).astype(np.int32) for n in (5, 9))]
        made.append(
            Group(f"g{index}", encoded.prompt, digests, tuple(Trace(t, np.ones(len(t), bool)) for t in traces), index)
        )
    assert [None if p is None else p.shape[0] for p in pixels] == [5, 1, None]
    return made, pixels


def naive_logprobs(model: torch.nn.Module, made: list[Group], pixels: list[torch.Tensor | None]) -> torch.Tensor:
    out = []
    for group, values in zip(made, pixels, strict=True):
        for trace in group.traces:
            ids = torch.from_numpy(np.concatenate((group.prompt, trace.tokens)).astype(np.int64))[None]
            logits = model(input_ids=ids, pixel_values=values).logits[0, len(group.prompt) - 1 : -1].float()
            out.append(torch.log_softmax(logits, -1).gather(1, ids[0, len(group.prompt) :, None])[:, 0])
    return torch.cat(out)


@pytest.mark.parametrize("split", ["one", "traces"])
def test_packed_equals_naive(engine: Make, store: Store, intern: Path, split: str) -> None:
    made, pixels = groups(intern, store)
    model = AutoModelForImageTextToText.from_pretrained(intern, dtype=torch.float32, attn_implementation="eager")
    expected = naive_logprobs(model, made, pixels)
    e = engine()
    e.begin(stage(intern))
    e.load(shard(1, made, split))
    np.testing.assert_allclose(e.score(1, 1.0, ()).old, expected.detach().numpy(), atol=1e-5)

    values = advantages(made)
    e.gradients(1, options(made), values)
    flat = np.concatenate(
        [
            np.repeat(a, len(t.tokens))
            for g, r in zip(made, values, strict=True)
            for t, a in zip(g.traces, r, strict=True)
        ]
    )
    # With the ratio at 1 the gradient of the clipped loss is that of -A * lp.
    (-(torch.from_numpy(flat) * expected).mean()).backward()
    ours = {n: p.grad for n, p in e._running.optimizer.parameters}
    for name, p in model.named_parameters():
        if p.grad is None or p.grad.norm() < 1e-7:
            continue
        cosine = torch.nn.functional.cosine_similarity(ours[name].flatten(), p.grad.flatten(), dim=0)
        assert cosine > 0.99999, f"{name}: {cosine}"
        torch.testing.assert_close(ours[name].norm(), p.grad.norm(), rtol=1e-3, atol=1e-7)


def test_directories_keep_the_names_of_the_source(engine: Make, store: Store, intern: Path) -> None:
    made, pixels = groups(intern, store)
    e = engine()
    e.begin(stage(intern, frozen=("language",)))
    path, digest = e.publish(0)
    assert digest == stored_digest(intern)
    for file in ("config.json", "tokenizer.json", "processor_config.json", "chat_template.jinja"):
        assert (path / file).read_bytes() == (intern / file).read_bytes()
    e.load(shard(1, made))
    e.step(1, options(made, learning_rate=1e-2), advantages(made))
    path, _ = e.publish(1)
    before, after = load_file(intern / "model.safetensors"), load_file(path / "model.safetensors")
    assert set(before) == set(after)
    moved = {n.split(".")[0] for n in after if not torch.equal(before[n], after[n])}
    assert moved == {"vision_tower", "multi_modal_projector"}
    e.load(shard(2, made))
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        expected = naive_logprobs(model, made, pixels).numpy()
    np.testing.assert_allclose(e.score(2, 1.0, ()).old, expected, atol=1e-5)


def test_another_expansion_is_refused(engine: Make, store: Store, intern: Path) -> None:
    made, _ = groups(intern, store)
    e = engine()
    e.begin(stage(intern))
    wrong = Group("odd", made[0].prompt, made[1].images, made[0].traces, 0)
    with pytest.raises(GroupError, match="the prompt has 20 image tokens, our own expansion 4"):
        e.load(shard(1, [wrong, *made[1:]]))
