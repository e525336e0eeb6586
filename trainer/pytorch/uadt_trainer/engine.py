"""Executes trainer commands on one rank: begin, load, score, step, publish, save.

Steps are fenced by (incarnation, step): a lower incarnation, a repeated step
and a skipped one are refused. A loss or gradient that is not finite leaves the
weights as they are, and the step counts as done.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .images import ImageSource
from .loss import LossResult, TokenData, update_loss
from .model import Pixels, Policy
from .optim import AdamW, AdamWOptions
from .packing import Packed, pack
from .selection import top_covariance, top_entropy
from .types import Report, Shard, StepOptions
from .weights import CheckpointError, digest, read_tensors, write_directory, write_tensors


class CommandError(Exception):
    """A command that cannot be carried out; the message goes back to the coordinator."""


class StepOrderError(CommandError):
    """A repeated or skipped step."""


class IncarnationError(CommandError):
    """A command of an older coordinator."""


class BadStepError(CommandError):
    """A loss or gradient that is not finite; the update was not applied."""

    def __init__(self, step: int, what: str, groups: Sequence[str]) -> None:
        super().__init__(f"step {step} refused: {what} is not finite (groups {list(groups)})")
        self.step, self.what, self.groups = step, what, list(groups)


class GroupError(CommandError):
    """A group that does not fit the model."""

    def __init__(self, group: str, reason: str) -> None:
        super().__init__(f"group {group}: {reason}")
        self.group, self.reason = group, reason


@dataclass(frozen=True)
class Stage:
    """What a backend is about to train."""

    incarnation: int
    name: str
    model: Path
    frozen: tuple[str, ...]
    optimizer: AdamWOptions
    reference: Path | None = None
    reference_digest: str = ""
    resume: Path | None = None
    step: int = 0


@dataclass
class MicroBatch:
    """A packed row of the shard and what the loss needs of its tokens, flat [R]."""

    packed: Packed
    pixels: Pixels | None
    traces: list[tuple[int, int]]  # (group, trace) of each row
    mask: torch.Tensor
    rows: torch.Tensor
    rollout: torch.Tensor | None
    old: torch.Tensor | None = None
    reference: torch.Tensor | None = None
    entropy: torch.Tensor | None = None


@dataclass
class Loaded:
    """A shard between load and step."""

    shard: Shard
    micro_batches: list[MicroBatch] = field(default_factory=list)


class Engine:
    """One rank of the trainer."""

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        work: Path,
        fetch: Callable[[str], bytes],
        max_pixels: int = 0,
        checkpointing: bool = False,
    ) -> None:
        self.device, self.dtype, self.work = device, dtype, work
        self.fetch, self.max_pixels, self.checkpointing = fetch, max_pixels, checkpointing
        self.incarnation = 0
        self.step_done = 0
        self.stage: Stage | None = None
        self.loaded: dict[int, Loaded] = {}
        self.published: list[Path] = []

    def begin(self, stage: Stage) -> str:
        """Make ready for a stage and return the digest of the weights it starts from."""
        if stage.incarnation < self.incarnation:
            message = f"incarnation {stage.incarnation} is older than {self.incarnation}"
            raise IncarnationError(message)
        self.incarnation, self.stage, self.step_done = stage.incarnation, stage, stage.step
        self.loaded.clear()
        source = stage.resume / "policy" if stage.resume else stage.model
        self.policy = Policy.load(source, self.device, self.dtype, self.checkpointing)
        self.policy.freeze(stage.frozen)
        self.source = source
        self.images = ImageSource(source, self.policy.family, self.fetch, self.max_pixels)
        self.optimizer = AdamW(self.policy.model.named_parameters(), stage.optimizer)
        if stage.resume:
            self.optimizer.restore(read_tensors(stage.resume / "optimizer.safetensors"))
        self.reference = self._open_reference(stage)
        return self.digest()

    def _open_reference(self, stage: Stage) -> Policy | None:
        if stage.reference is None:
            return None
        reference = Policy.load(stage.reference, self.device, self.dtype)
        reference.freeze(("vision", "projector", "language"))
        found = digest(reference.model.state_dict())
        if stage.reference_digest and found != stage.reference_digest:
            message = f"reference {stage.reference} has digest {found}, want {stage.reference_digest}"
            raise CheckpointError(message)
        return reference

    def digest(self) -> str:
        """Return the digest of the current weights."""
        return digest(self._tensors())

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = dict(self.policy.model.state_dict())
        if self.policy.model.config.tie_word_embeddings:
            tensors.pop("lm_head.weight", None)
        return tensors

    def load(self, shard: Shard) -> None:
        """Take the data of one update and lay it out in packed rows."""
        loaded = Loaded(shard)
        for index in range(shard.micro_batches):
            parts = [p for p in shard.parts if p.micro_batch == index]
            if parts:
                loaded.micro_batches.append(self._pack(shard, parts))
        self.loaded[shard.step] = loaded

    def _pack(self, shard: Shard, parts: Sequence) -> MicroBatch:
        groups = [shard.groups[p.group] for p in parts]
        spans = [(p.start, p.stop) for p in parts]
        positions = []
        for group in groups:
            grids = self.images.grids(group.images)
            self._check(group)
            positions.append(self.policy.prompt_positions(group.prompt, grids))
        packed = pack(groups, spans, self.policy.image_token, positions)
        pixels = self.images.pixels(packed.images)
        picked = [(p.group, i) for p in parts for i in range(p.start, p.stop)]
        traces = [shard.groups[g].traces[i] for g, i in picked]
        sampled = [t.rollout_logprobs for t in traces]
        return MicroBatch(
            packed=packed,
            pixels=pixels,
            traces=picked,
            mask=self._flat([t.mask for t in traces], torch.bool),
            rows=torch.repeat_interleave(torch.arange(len(traces)), torch.tensor(packed.lengths)).to(self.device),
            rollout=None if any(s is None for s in sampled) else self._flat(sampled, torch.float32),
        )

    def _check(self, group) -> None:  # noqa: ANN001
        vocabulary = self.policy.head.shape[0]
        for ids in (group.prompt, *(t.tokens for t in group.traces)):
            if len(ids) == 0 or int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
                raise GroupError(group.id, f"token ids are outside [0, {vocabulary}) or absent")
        slots = int((group.prompt == self.policy.image_token).sum())
        want = self.policy.image_tokens(self.images.pixels(group.images))
        if slots != want:
            raise GroupError(group.id, f"prompt has {slots} image tokens, our own expansion {want}")

    def _flat(self, arrays: Sequence[np.ndarray], dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(arrays)).to(self.device, dtype)

    def _shard(self, step: int) -> Loaded:
        if step not in self.loaded:
            message = f"step {step} is not loaded"
            raise CommandError(message)
        return self.loaded[step]

    @torch.no_grad()
    def score(self, step: int, temperature: float, banned: tuple[int, ...]) -> list[MicroBatch]:
        """Fill in old and reference log-probabilities and entropies of a loaded shard."""
        for micro in self._shard(step).micro_batches:
            scores = self.policy.score(micro.packed, micro.pixels, temperature, banned)
            micro.old, micro.entropy = scores.logprobs, scores.entropies
            if self.reference is not None:
                micro.reference = self.reference.score(micro.packed, micro.pixels, temperature, banned).logprobs
        return self._shard(step).micro_batches

    def step(self, step: int, options: StepOptions, advantages: Sequence[Sequence[np.ndarray]]) -> Report:
        """Apply one update. advantages is [Q][G] of [1] or [T]."""
        if step != self.step_done + 1:
            message = f"optimizer is at step {self.step_done}, got step {step}, want {self.step_done + 1}"
            raise StepOrderError(message)
        started = time.perf_counter()
        loaded = self._shard(step)
        values = [self._advantages(m, advantages) for m in loaded.micro_batches]
        report = Report(step=step)
        self.optimizer.zero_grad()
        selections = self._select(loaded.micro_batches, values, options)
        for micro, value, (kept, hit) in zip(loaded.micro_batches, values, selections, strict=True):
            result = self._backward(micro, value, kept, hit, options)
            self._note(report, micro, result)
        bad = None
        if not np.isfinite(report.loss):
            bad = "loss"
        norm = float(self.optimizer.grad_norm())
        if bad is None and not np.isfinite(norm):
            bad = "gradient"
        self.step_done = step
        del self.loaded[step]
        if bad is not None:
            self.optimizer.zero_grad()
            raise BadStepError(step, bad, self._offenders(loaded, advantages))
        scale = min(1.0, options.grad_clip / (norm + 1e-6)) if options.grad_clip else 1.0
        self.optimizer.step(options.learning_rate, scale)
        self.optimizer.zero_grad()
        report.grad_norm = norm
        report.seconds["step"] = time.perf_counter() - started
        if self.device.type == "cuda":
            report.peak_bytes = torch.cuda.max_memory_allocated(self.device)
        return report

    def _backward(
        self,
        micro: MicroBatch,
        advantages: torch.Tensor,
        kept: torch.Tensor | None,
        hit: torch.Tensor | None,
        options: StepOptions,
    ) -> LossResult:
        scores = self.policy.score(micro.packed, micro.pixels, options.temperature, options.banned)
        # Without a Score the weights are those of the batch's start, so old is what is trained, detached.
        old = micro.old if micro.old is not None else scores.logprobs.detach()
        data = TokenData(
            mask=micro.mask,
            rows=micro.rows,
            num_rows=len(micro.traces),
            advantages=advantages,
            old=old,
            reference=micro.reference,
            rollout=micro.rollout,
            entropy_kept=kept,
            covariance_hit=hit,
        )
        result = update_loss(scores.logprobs, scores.entropies, data, options)
        result.loss.backward()
        return result

    def _select(
        self, micros: Sequence[MicroBatch], values: Sequence[torch.Tensor], options: StepOptions
    ) -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
        """Choose tokens over the whole shard, then cut the choice into micro-batches."""
        quantile = 0 < options.entropy_quantile < 1
        if not micros or not (quantile or options.covariance_kind):
            return [(None, None)] * len(micros)
        if any(m.old is None or m.entropy is None for m in micros):
            message = "entropy_quantile and covariance need a score of the step first"
            raise CommandError(message)
        mask = torch.cat([m.mask for m in micros])
        sizes = [m.mask.numel() for m in micros]
        kept = top_entropy(torch.cat([m.entropy for m in micros]), mask, options.entropy_quantile)
        hit = None
        if options.covariance_kind:
            old = torch.cat([m.old for m in micros])
            hit = top_covariance(old, torch.cat(list(values)), mask, options.covariance_share)
        cut = [t.split(sizes) if t is not None else [None] * len(micros) for t in (kept, hit)]
        return list(zip(*cut, strict=True))

    def _advantages(self, micro: MicroBatch, advantages: Sequence[Sequence[np.ndarray]]) -> torch.Tensor:
        rows = []
        for (group, trace), length in zip(micro.traces, micro.packed.lengths, strict=True):
            value = np.asarray(advantages[group][trace], dtype=np.float32)
            if value.shape not in ((1,), (length,)):
                message = (
                    f"advantages of group {group} trace {trace} have shape {value.shape}, want (1,) or ({length},)"
                )
                raise CommandError(message)
            rows.append(np.broadcast_to(value, (length,)))
        return self._flat(rows, torch.float32)

    def _note(self, report: Report, micro: MicroBatch, result: LossResult) -> None:
        report.loss += float(result.loss.detach())
        report.policy_loss += result.sums.pop("policy_loss")
        report.kl_loss += result.sums.pop("kl_loss", 0.0)
        report.tokens += int(micro.mask.sum())
        for name, value in result.sums.items():
            report.sums[name] = report.sums.get(name, 0.0) + value
        for name, value in result.maxima.items():
            report.maxima[name] = max(report.maxima.get(name, value), value)

    def _offenders(self, loaded: Loaded, advantages: Sequence[Sequence[np.ndarray]]) -> list[str]:
        groups = loaded.shard.groups
        bad = [g.id for g, a in zip(groups, advantages, strict=True) if not all(np.isfinite(v).all() for v in a)]
        return bad or [g.id for g in groups]

    def publish(self, name: str) -> tuple[Path, str]:
        """Write the current weights as a Hugging Face directory; the one before the last is removed."""
        tensors = self._tensors()
        path = self.work / f"policy-{name}"
        write_directory(path, tensors, self.source)
        self.published.append(path)
        while len(self.published) > 2:
            shutil.rmtree(self.published.pop(0), ignore_errors=True)
        return path, digest(tensors)

    def save(self, path: Path) -> str:
        """Write policy and optimizer below path and return the digest of the weights."""
        tensors = self._tensors()
        write_directory(path / "policy", tensors, self.source)
        write_tensors(path / "optimizer.safetensors", self.optimizer.state())
        return digest(tensors)
