"""Micro checkpoints in the published flat form, images, and an engine on them."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from broadcast_kit import CPU, HOST
from PIL import Image
from safetensors.torch import save_file

from uadt_trainer.engine import Engine, EngineOptions, Stage
from uadt_trainer.optim import AdamWOptions
from uadt_trainer.transfer import Transfer
from uadt_trainer.types import Denominators, Group, Part, Shard, StepOptions, Trace

VISION_START, VISION_END, PAD, VIDEO, VOCAB = 394, 395, 396, 397, 398


def config(tie: bool) -> dict:
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
        "image_token_id": PAD,
        "video_token_id": VIDEO,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "max_position_embeddings": 512,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "use_sliding_window": False,
        "tie_word_embeddings": tie,
        "torch_dtype": "float32",
        "vocab_size": VOCAB,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 2,
            "hidden_act": "silu",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "in_chans": 3,
            "out_hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
    }


PREPROCESSOR = {
    "min_pixels": 4 * 28 * 28,
    "max_pixels": 64 * 28 * 28,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}


def shapes(tie: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published layout."""
    c = config(tie)
    v, h = c["vision_config"], c["hidden_size"]
    vh, vi, head = v["hidden_size"], v["intermediate_size"], h // c["num_attention_heads"]
    out: dict[str, tuple[int, ...]] = {"visual.patch_embed.proj.weight": (vh, 3, 2, 14, 14)}

    def linear(name: str, rows: int, columns: int, bias: bool) -> None:
        out[f"{name}.weight"] = (rows, columns)
        if bias:
            out[f"{name}.bias"] = (rows,)

    for n in range(v["depth"]):
        p = f"visual.blocks.{n}."
        out[p + "norm1.weight"] = out[p + "norm2.weight"] = (vh,)
        for name, rows, columns in (
            ("attn.qkv", 3 * vh, vh),
            ("attn.proj", vh, vh),
            ("mlp.gate_proj", vi, vh),
            ("mlp.up_proj", vi, vh),
            ("mlp.down_proj", vh, vi),
        ):
            linear(p + name, rows, columns, True)
    out["visual.merger.ln_q.weight"] = (vh,)
    linear("visual.merger.mlp.0", 4 * vh, 4 * vh, True)
    linear("visual.merger.mlp.2", h, 4 * vh, True)
    out["model.embed_tokens.weight"] = (c["vocab_size"], h)
    for n in range(c["num_hidden_layers"]):
        p = f"model.layers.{n}."
        out[p + "input_layernorm.weight"] = out[p + "post_attention_layernorm.weight"] = (h,)
        linear(p + "self_attn.q_proj", h, h, True)
        linear(p + "self_attn.k_proj", head, h, True)
        linear(p + "self_attn.v_proj", head, h, True)
        linear(p + "self_attn.o_proj", h, h, False)
        linear(p + "mlp.gate_proj", c["intermediate_size"], h, False)
        linear(p + "mlp.up_proj", c["intermediate_size"], h, False)
        linear(p + "mlp.down_proj", h, c["intermediate_size"], False)
    out["model.norm.weight"] = (h,)
    if not tie:
        out["lm_head.weight"] = (c["vocab_size"], h)
    return out


def write_checkpoint(path: Path, tie: bool = True, seed: int = 1) -> Path:
    path.mkdir(parents=True)
    g = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes(tie).items():
        noise = torch.randn(*shape, generator=g)
        if name.endswith("embed_tokens.weight"):
            weights[name] = noise * 0.3
        elif len(shape) > 1:
            weights[name] = noise / math.sqrt(math.prod(shape[1:]))
        else:
            weights[name] = noise * 0.1 + (0 if name.endswith("bias") else 1)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config(tie)))
    (path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    (path / "tokenizer.json").write_text('{"any": "file"}')
    return path


class Store:
    """Images by digest."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.fetched: list[str] = []

    def add(self, width: int, height: int, seed: int) -> str:
        pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        self.blobs[digest] = buffer.getvalue()
        return digest

    def fetch(self, digest: str) -> bytes:
        self.fetched.append(digest)
        return self.blobs[digest]


SIZES = ((84, 84, 9), (168, 140, 30))  # width, height, tokens


def batch(store: Store, seed: int, lengths: tuple[tuple[int, ...], ...] = ((9, 1, 14), (6, 11), (7, 3))) -> list[Group]:
    """Groups with one image, two images and none; ragged traces, masks, rollout log-probabilities."""
    rng = np.random.default_rng(seed)
    digests = [store.add(w, h, i) for i, (w, h, _) in enumerate(SIZES)]
    groups = []
    for index, traces in enumerate(lengths):
        prompt = list(rng.integers(2, 390, 3))
        images = ([0], [0, 1], [])[index % 3]
        for i in images:
            prompt += [VISION_START, *[PAD] * SIZES[i][2], VISION_END, int(rng.integers(2, 390))]
        groups.append(
            Group(
                id=f"g{seed}-{index}",
                prompt=np.array(prompt, dtype=np.int32),
                images=tuple(digests[i] for i in images),
                traces=tuple(
                    Trace(
                        tokens=rng.integers(2, 390, n).astype(np.int32),
                        mask=rng.random(n) < 0.85,
                        rollout_logprobs=-(rng.random(n) * 8).astype(np.float32),
                    )
                    for n in traces
                ),
                index=index,
            )
        )
    return groups


def shard(step: int, groups: list[Group], split: str = "one") -> Shard:
    """All in one micro-batch, one micro-batch a group, or one a trace (and an empty one)."""
    parts = []
    for g, group in enumerate(groups):
        if split == "one":
            parts.append(Part(0, g, 0, len(group.traces)))
        elif split == "groups":
            parts.append(Part(g, g, 0, len(group.traces)))
        else:
            parts += [Part(len(parts) + i, g, i, i + 1) for i in range(len(group.traces))]
    return Shard(step, tuple(groups), tuple(parts), 1 + max(p.micro_batch for p in parts) + (split == "traces"))


def denominators(groups: list[Group]) -> Denominators:
    counts = [int(t.mask.sum()) for g in groups for t in g.traces]
    return Denominators(sum(counts), sum(c > 0 for c in counts), 16)


def options(groups: list[Group], **changes: object) -> StepOptions:
    return StepOptions(**{"loss": "ppo", "denominators": denominators(groups), "learning_rate": 1e-3} | changes)


def advantages(groups: list[Group], seed: int = 0) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [[rng.standard_normal(1).astype(np.float32) for _ in g.traces] for g in groups]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "micro")


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def engine(tmp_path: Path, store: Store) -> Callable[[], Engine]:
    """Makes engines that share a work directory."""

    def make() -> Engine:
        return Engine(EngineOptions(torch.device("cpu"), torch.float32, tmp_path / "work", store.fetch))

    return make


def stage(model: Path, **changes: object) -> Stage:
    return Stage(
        **{"incarnation": 3, "name": "rl", "model": model, "frozen": (), "optimizer": AdamWOptions()} | changes
    )


def run_step(engine: Engine, step: int, groups: list[Group], split: str = "one", score: bool = True, **changes: object):
    engine.load(shard(step, groups, split))
    o = options(groups, **changes)
    if score:
        engine.score(step, o.temperature, o.banned)
    return engine.step(step, o, advantages(groups, step))


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let gloo meet on the loopback interface."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


@pytest.fixture
def transfer(loopback: None) -> Iterator[Transfer]:
    made = Transfer(CPU, HOST)
    yield made
    made.close()
