"""The gorgonia backend's loss and gradients agree with PyTorch autograd on transformers' model."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from gradient_case import (
    IMAGE_PAD,
    VIDEO_PAD,
    VISION_END,
    VISION_START,
    Picture,
    published,
    write_checkpoint,
    write_picture,
)

ROOT = Path(__file__).resolve().parents[2]
BANNED = [IMAGE_PAD, VIDEO_PAD]


class Case:
    """A checkpoint, a batch of groups with images, and both sides' answers."""

    def __init__(self, folder: Path, tie: bool) -> None:
        self.folder = folder
        self.generator = torch.Generator().manual_seed(11)
        write_checkpoint(folder / "model", tie, seed=1)
        write_checkpoint(folder / "reference", tie, seed=2, near=folder / "model")
        images = folder / "images"
        self.pictures = [write_picture(images, 84, 84, 1), write_picture(images, 168, 140, 2)]
        self.groups = [
            self.group([self.pictures[0]], [9, 1, 14]),
            self.group(self.pictures, [6, 11]),
            self.group([], [7, 3]),
        ]

    def words(self, n: int) -> list[int]:
        return torch.randint(2, VISION_START, (n,), generator=self.generator).tolist()

    def group(self, pictures: list[Picture], lengths: list[int]) -> dict[str, Any]:
        prompt = self.words(3)
        for p in pictures:
            prompt += [VISION_START, *[IMAGE_PAD] * p.tokens, VISION_END, *self.words(2)]
        traces = []
        for n in lengths:
            mask = (torch.rand(n, generator=self.generator) < 0.85).tolist()
            rollout = (-torch.rand(n, generator=self.generator) * 8).tolist()
            traces.append({"Tokens": self.words(n), "Mask": mask, "RolloutLogprobs": rollout})
        return {
            "ID": f"g{n}",
            "Prompt": prompt,
            "Images": [{"digest": p.digest, "media_type": "image/png"} for p in pictures],
            "Traces": traces,
        }

    def go(
        self,
        values: list[list[list[float]]],
        options: dict[str, Any],
        stage: dict[str, Any],
        old: list[list[list[float]]] | None = None,
    ) -> None:
        """Run the Go side; its answer is in self.report and self.tensors."""
        case = {
            "Stage": {"Name": "case"} | stage,
            "Batch": {"Step": 1, "Groups": self.groups},
            "Advantages": {"Values": values, "Options": options},
            "Score": old is not None,
            "Old": old,
        }
        (self.folder / "case.json").write_text(json.dumps(case))
        command = ["go", "test", "./trainer/graph", "-run", "^TestGradientCase$", "-count=1"]
        done = subprocess.run(
            command,
            check=False,
            cwd=ROOT,
            env=os.environ | {"UADT_GRADIENT_CASE": str(self.folder)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        with safe_open(self.folder / "result.safetensors", "pt") as f:
            self.report: dict[str, Any] = json.loads(f.metadata()["report"])
            self.tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118

    def logits(
        self, model: torch.nn.Module, group: dict[str, Any], tokens: list[int], temperature: float
    ) -> torch.Tensor:
        """[T, V] scaled logits that predict the response tokens, banned ids at minus infinity."""
        by_digest = {p.digest: p for p in self.pictures}
        pictures = [by_digest[i["digest"]] for i in group["Images"]]
        ids = torch.tensor([group["Prompt"] + tokens])
        inputs: dict[str, torch.Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        inputs["mm_token_type_ids"] = (ids == IMAGE_PAD).int()
        if pictures:
            inputs["pixel_values"] = torch.cat([p.pixels for p in pictures])
            inputs["image_grid_thw"] = torch.cat([p.grid for p in pictures])
        out = model(**inputs, use_cache=False).logits[0]
        start = len(group["Prompt"]) - 1
        out = out[start : start + len(tokens)] / temperature
        bans = torch.zeros(out.shape[-1], dtype=torch.bool)
        bans[BANNED] = True
        return out.masked_fill(bans, float("-inf"))

    def forward(self, model: torch.nn.Module, temperature: float) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
        """[Q][G] (log-probabilities [T], entropies [T])."""
        result = []
        for g in self.groups:
            row = []
            for t in g["Traces"]:
                log = self.logits(model, g, t["Tokens"], temperature).log_softmax(-1)
                lp = log.gather(1, torch.tensor(t["Tokens"])[:, None])[:, 0]
                entropy = -(log.exp() * log.masked_fill(log.isinf(), 0)).sum(-1)
                row.append((lp, entropy))
            result.append(row)
        return result


def load(path: Path) -> torch.nn.Module:
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).train()


def compare(case: Case, model: torch.nn.Module, loss: torch.Tensor, frozen: tuple[str, ...] = ()) -> None:
    """Loss to 1e-5 relative; cosine 0.9999 where the norm counts, absolute error elsewhere."""
    want = float(loss.detach())
    assert case.report["Loss"] == pytest.approx(want, rel=1e-5)
    loss.backward()
    grads = {published(n): p.grad for n, p in model.named_parameters() if p.grad is not None}
    trained = {n: g for n, g in grads.items() if not n.startswith(frozen)} if frozen else grads
    total = float(torch.sqrt(sum((g.double() ** 2).sum() for g in trained.values())))
    assert case.report["GradNorm"] == pytest.approx(total, rel=1e-4)
    names = set(case.tensors) - {"logprobs", "entropies"}
    assert names == set(grads)
    for name in sorted(names):
        got = case.tensors[name].double()
        if name not in trained:
            assert not got.any(), f"{name} is frozen and has a gradient"
            continue
        g = trained[name].double()
        if float(g.norm()) > 1e-6 * total:
            cosine = float((got * g).sum() / (got.norm() * g.norm()))
            assert cosine >= 0.9999, f"{name}: cosine {cosine}"
            assert float((got - g).norm() / g.norm()) < 1e-3, name
        else:
            assert float((got - g).abs().max()) < 1e-6 * total, name


def nll_options(case: Case, temperature: float) -> dict[str, Any]:
    tokens = sum(sum(t["Mask"]) for g in case.groups for t in g["Traces"])
    sequences = sum(any(t["Mask"]) for g in case.groups for t in g["Traces"])
    return {
        "Loss": "nll",
        "Aggregation": "token_mean",
        "Denominators": {"Tokens": tokens, "Sequences": sequences, "MaxTokens": 16},
        "Temperature": temperature,
        "Banned": BANNED,
    }


def ones(case: Case) -> list[list[list[float]]]:
    return [[[1.0] for _ in g["Traces"]] for g in case.groups]


@pytest.mark.parametrize("tie", [True, False])
def test_nll(tmp_path: Path, tie: bool) -> None:
    case = Case(tmp_path, tie)
    options = nll_options(case, temperature=0.9)
    case.go(ones(case), options, {})
    model = load(tmp_path / "model")
    out = case.forward(model, 0.9)
    lp = torch.cat([t[0] for row in out for t in row])
    entropy = torch.cat([t[1] for row in out for t in row])
    assert torch.allclose(case.tensors["logprobs"], lp, atol=2e-5)
    assert torch.allclose(case.tensors["entropies"], entropy, atol=2e-5)
    mask = torch.tensor([m for g in case.groups for t in g["Traces"] for m in t["Mask"]])
    compare(case, model, -(lp * mask).sum() / options["Denominators"]["Tokens"])


@pytest.mark.parametrize(
    ("parts", "prefixes"),
    [
        (["vision"], ("visual.patch_embed", "visual.blocks")),
        (["vision", "projector"], ("visual.",)),
        (["language"], ("model.", "lm_head.")),
    ],
)
def test_frozen_parts(tmp_path: Path, parts: list[str], prefixes: tuple[str, ...]) -> None:
    case = Case(tmp_path, tie=True)
    options = nll_options(case, temperature=1.0)
    case.go(ones(case), options, {"Frozen": parts})
    model = load(tmp_path / "model")
    out = case.forward(model, 1.0)
    lp = torch.cat([t[0] for row in out for t in row])
    mask = torch.tensor([m for g in case.groups for t in g["Traces"] for m in t["Mask"]])
    compare(case, model, -(lp * mask).sum() / options["Denominators"]["Tokens"], prefixes)


RECIPES: dict[str, dict[str, Any]] = {
    "ppo": {
        "Loss": "ppo", "ClipLow": 0.2, "ClipHigh": 0.28, "DualClip": 3.0, "Aggregation": "token_mean",
        "KL": {"Kind": "k3", "Coef": 0.04}, "EntropyBonus": 0.01,
    },
    "gspo": {
        "Loss": "gspo", "ClipLow": 0.1, "ClipHigh": 0.1, "Aggregation": "token_mean", "KL": {"Kind": "k2", "Coef": 0.1},
    },
    "cispo": {
        "Loss": "cispo", "ClipLow": 0.3, "ClipHigh": 0.3, "Aggregation": "seq_mean_token_sum_norm",
        "Correction": {"Level": "token", "Mode": "truncate", "Upper": 2.0}, "EntropyQuantile": 0.4,
    },
    "kl_cov": {
        "Loss": "ppo", "ClipLow": 0.2, "ClipHigh": 0.2, "Aggregation": "seq_mean_token_mean",
        "Covariance": {"Kind": "kl", "Share": 0.2, "Coef": 0.5}, "KL": {"Kind": "k3", "Coef": 0.04, "Clamp": True},
    },
    "clip_cov": {
        "Loss": "ppo", "ClipLow": 0.2, "ClipHigh": 0.2, "Aggregation": "seq_mean_token_sum",
        "Covariance": {"Kind": "clip", "Share": 0.2},
    },
}  # fmt: skip


class Update:
    """One update's loss in PyTorch, written from the formulas, over flat tokens [N] of all traces."""

    def __init__(self, case: Case, options: dict[str, Any]) -> None:
        self.o = options
        traces = [t for g in case.groups for t in g["Traces"]]
        self.sizes = [len(t["Tokens"]) for t in traces]
        self.mask = torch.tensor([m for t in traces for m in t["Mask"]])
        self.rollout = torch.tensor([v for t in traces for v in t["RolloutLogprobs"]])
        row = torch.arange(len(traces)).repeat_interleave(torch.tensor(self.sizes))  # [N] trace of each token
        self.row = row
        self.count = torch.zeros(len(traces)).index_add(0, row, self.mask.float())  # [traces] masked-in tokens

    def weights(self) -> torch.Tensor:
        """[N] factor of every token in the loss."""
        d = self.o["Denominators"]
        how = "seq_mean_token_mean" if self.o["Loss"] == "gspo" else self.o["Aggregation"]
        each = {
            "token_mean": torch.full_like(self.count, 1 / d["Tokens"]),
            "seq_mean_token_sum": torch.full_like(self.count, 1 / d["Sequences"]),
            "seq_mean_token_mean": 1 / (self.count.clamp(min=1) * d["Sequences"]),
            "seq_mean_token_sum_norm": torch.full_like(self.count, 1 / (d["MaxTokens"] * d["Sequences"])),
        }[how]
        return each[self.row] * self.mask

    def chosen(self, score: torch.Tensor, count: int) -> torch.Tensor:
        """[N] the count masked-in tokens of largest score."""
        out = torch.zeros_like(self.mask)
        out[score.masked_fill(~self.mask, float("-inf")).topk(count).indices] = True
        return out

    def policy(self, lp: torch.Tensor, old: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """[N] token losses."""
        o = self.o
        low, high = 1 - o["ClipLow"], 1 + o["ClipHigh"]
        log_ratio = lp - old
        if o["Loss"] == "gspo":
            mean = torch.zeros_like(self.count).index_add(0, self.row, log_ratio * self.mask) / self.count.clamp(min=1)
            ratio = (lp - lp.detach() + mean[self.row].detach()).clamp(max=10).exp()
        else:
            ratio = log_ratio.clamp(-20, 20).exp()
        if o["Loss"] == "cispo":
            return -ratio.clamp(low, high).detach() * a * lp
        loss = torch.maximum(-a * ratio, -a * ratio.clamp(low, high))
        if o.get("DualClip"):
            loss = torch.where(a < 0, torch.minimum(loss, -a * o["DualClip"]), loss)
        return loss

    def loss(
        self, lp: torch.Tensor, entropy: torch.Tensor, ref: torch.Tensor, old: torch.Tensor, a: torch.Tensor
    ) -> torch.Tensor:
        o, n = self.o, int(self.mask.sum())
        shaped = a
        if o.get("Correction"):
            shaped = a * (old - self.rollout).clamp(-20, 20).exp().clamp(max=o["Correction"]["Upper"])
        loss = self.policy(lp, old, shaped)
        if share := o.get("EntropyQuantile"):
            loss = loss * self.chosen(entropy.detach(), math.ceil(share * n))
        if cov := o.get("Covariance"):
            center = (old - old[self.mask].mean()) * (a - a[self.mask].mean())
            picked = self.chosen(center, max(1, int(cov["Share"] * n)))
            if cov["Kind"] == "clip":
                loss = torch.where(picked, loss.detach(), loss)
            else:
                loss = loss + torch.where(picked, cov["Coef"] * (lp - old).abs(), torch.zeros_like(lp))
        if kl := o.get("KL"):
            d = ref - lp
            if kl.get("Clamp"):
                d = d.clamp(-20, 20)
            estimate = d.exp() - d - 1 if kl["Kind"] == "k3" else d * d / 2
            if kl.get("Clamp"):
                estimate = estimate.clamp(-10, 10)
            loss = loss + kl["Coef"] * estimate
        loss = loss - o.get("EntropyBonus", 0.0) * entropy
        return (loss * self.weights()).sum()


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_recipes(tmp_path: Path, recipe: str) -> None:
    """Every loss, KL, aggregation, correction and selection, with ratios on both sides of the clip."""
    case = Case(tmp_path, tie=True)
    options = nll_options(case, temperature=0.8) | RECIPES[recipe]
    model, reference = load(tmp_path / "model"), load(tmp_path / "reference")
    out = case.forward(model, 0.8)
    lp, entropy = (torch.cat([t[k] for row in out for t in row]) for k in (0, 1))
    with torch.no_grad():
        ref = torch.cat([t[0] for row in case.forward(reference, 0.8) for t in row])
    update = Update(case, options)
    old = lp.detach() + 0.4 * torch.randn(lp.shape, generator=case.generator)
    if options["Loss"] == "gspo":  # a shift of whole traces, so that sequence ratios reach the clip
        old += 0.2 * torch.randn(len(update.sizes), generator=case.generator)[update.row]
    a = torch.randn(lp.shape, generator=case.generator)
    loss = update.loss(lp, entropy, ref, old, a)
    stage = {"Reference": {"Path": "reference"}} if "KL" in options else {}
    case.go(nested(case, a), options, stage, old=nested(case, old))
    compare(case, model, loss)
    assert case.report["Tokens"] == int(update.mask.sum())
    # The case must reach the bounds, else they are not tested.
    assert case.report["ClipLow"] > 0
    assert case.report["ClipHigh"] > 0


def nested(case: Case, flat: torch.Tensor) -> list[list[list[float]]]:
    """[N] -> [Q][G][T]."""
    values = iter(flat.tolist())
    return [[[next(values) for _ in t["Tokens"]] for t in g["Traces"]] for g in case.groups]
