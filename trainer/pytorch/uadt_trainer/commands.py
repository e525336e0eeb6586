"""From frames to what the engine takes, and back to answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .engine import Scores, Stage
from .frames import Fields, Frame, FrameError
from .lora import LoRAOptions
from .optim import AdamWOptions
from .types import Denominators, Group, Part, Report, Shard, StepOptions, Trace


def read_stage(body: Fields) -> tuple[Stage, dict[str, Any]]:
    """Read the body of begin: the stage, and how to train it."""
    f = Fields("stage", body.take("stage", dict))
    o = Fields("stage.optimizer", f.take("optimizer", dict))
    optimizer = AdamWOptions(
        beta1=o.take("beta1", float),
        beta2=o.take("beta2", float),
        epsilon=o.take("epsilon", float),
        weight_decay=o.take("weight_decay", float),
    )
    o.done()
    reference, resume = f.take("reference", str), f.take("resume", str)
    stage = Stage(
        incarnation=f.take("incarnation", int),
        name=f.take("name", str),
        model=Path(f.take("model", str)),
        frozen=f.texts("frozen"),
        optimizer=optimizer,
        reference=Path(reference) if reference else None,
        reference_digest=f.take("reference_digest", str),
        resume=Path(resume) if resume else None,
        step=f.take("step", int),
        lora=_read_lora(Fields("stage.lora", f.take("lora", dict))),
    )
    f.done()
    how = {"max_pixels": body.take("max_pixels", int), "checkpointing": body.take("checkpointing", bool)}
    body.done()
    return stage, how


def _read_lora(f: Fields) -> LoRAOptions | None:
    """Read what adapters a stage trains; rank 0 is none."""
    options = LoRAOptions(f.take("rank", int), f.take("alpha", float), f.texts("targets"), f.take("seed", int))
    f.done()
    return options if options.rank else None


def read_shard(frame: Frame, body: Fields) -> Shard:
    """Read the body and tensors of load.

    Groups have prompts at prompt_offsets [Q+1] of prompt_tokens, and `traces` traces each; traces
    lie at offsets [R+1] of tokens, mask and rollout_logprobs (NaN: the trace has none).
    """
    step, micro_batches = body.take("step", int), body.take("micro_batches", int)
    headings, parts = body.take("groups", list), body.take("parts", list)
    body.done()
    prompts = _cut("prompt_tokens", frame.tensor("prompt_tokens", np.int32), frame.tensor("prompt_offsets", np.int32))
    offsets = frame.tensor("offsets", np.int32)
    tokens = _cut("tokens", frame.tensor("tokens", np.int32), offsets)
    masks = _cut("mask", frame.tensor("mask", np.uint8), offsets)
    sampled = _cut("rollout_logprobs", frame.tensor("rollout_logprobs", np.float32), offsets)
    if len(prompts) != len(headings):
        message = f"{len(prompts)} prompts for {len(headings)} groups"
        raise FrameError(message)
    groups, at = [], 0
    for heading, prompt in zip(headings, prompts, strict=True):
        f = Fields("group", heading)
        stop = at + f.take("traces", int)
        if not at <= stop <= len(tokens):
            message = f"groups have {stop} traces or more, the frame {len(tokens)}"
            raise FrameError(message)
        traces = tuple(
            Trace(t, m.astype(bool), None if len(s) and np.isnan(s).all() else s)
            for t, m, s in zip(tokens[at:stop], masks[at:stop], sampled[at:stop], strict=True)
        )
        groups.append(Group(f.take("id", str), prompt, f.texts("images"), traces, f.take("index", int)))
        f.done()
        at = stop
    if at != len(tokens):
        message = f"groups have {at} traces, the frame {len(tokens)}"
        raise FrameError(message)
    if not all(isinstance(p, list) and len(p) == 4 and all(type(x) is int for x in p) for p in parts):
        message = "parts are lists of micro-batch, group, first trace and the one after the last"
        raise FrameError(message)
    return Shard(step, tuple(groups), tuple(Part(*p) for p in parts), micro_batches)


def _cut(name: str, values: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    """Cut [N] at offsets [n+1], which start at 0, never fall and end at N."""
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(values) or (np.diff(offsets) < 0).any():
        message = f"offsets of {name} do not cover its {len(values)} values"
        raise FrameError(message)
    return np.split(values, offsets[1:-1]) if len(offsets) > 1 else []


def read_options(body: Fields) -> StepOptions:
    """Read the options of step."""
    f = Fields("options", body.take("options", dict))
    d = Fields("options.denominators", f.take("denominators", dict))
    denominators = Denominators(d.take("tokens", int), d.take("sequences", int), d.take("max_tokens", int))
    d.done()
    texts = ("loss", "aggregation", "kl", "correction_level", "correction_mode", "covariance_kind")
    numbers = (
        *("learning_rate", "clip_low", "clip_high", "dual_clip", "kl_coef", "correction_lower", "correction_upper"),
        *("covariance_share", "covariance_coef", "entropy_bonus", "entropy_quantile", "grad_clip", "temperature"),
    )
    values: dict[str, Any] = {n: f.take(n, str) for n in texts} | {n: f.take(n, float) for n in numbers}
    options = StepOptions(
        **values, kl_clamp=f.take("kl_clamp", bool), banned=f.numbers("banned"), denominators=denominators
    )
    f.done()
    if options.loss not in ("ppo", "gspo", "cispo", "nll") or options.kl not in ("", "k2", "k3"):
        message = f"loss {options.loss!r} with KL {options.kl!r}"
        raise FrameError(message)
    return options


def read_advantages(frame: Frame, shard: Shard) -> list[list[np.ndarray]]:
    """Read the advantages of step, one value or one a token for each trace of the shard."""
    rows = _cut("advantages", frame.tensor("advantages", np.float32), frame.tensor("advantage_offsets", np.int32))
    want = sum(len(g.traces) for g in shard.groups)
    if len(rows) != want:
        message = f"advantages of {len(rows)} traces, want {want}"
        raise FrameError(message)
    rows = iter(rows)
    return [[next(rows) for _ in g.traces] for g in shard.groups]


def write_scores(scores: Scores) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Render the answer to score."""
    tensors = {"old": scores.old, "entropy": scores.entropy}
    if scores.reference is not None:
        tensors["reference"] = scores.reference
    return {"seconds": scores.seconds}, tensors


def write_report(report: Report) -> dict[str, Any]:
    """Render the answer to step."""
    return {
        "step": report.step,
        "grad_norm": report.grad_norm,
        "tokens": report.tokens,
        "sums": report.sums,
        "maxima": report.maxima,
        "seconds": report.seconds,
        "peak_bytes": report.peak_bytes,
    }
