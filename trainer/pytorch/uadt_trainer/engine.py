"""Executes trainer commands on one rank: begin, load, score, step, publish, save.

Steps are fenced by (incarnation, step): a lower incarnation, a repeated step
and a skipped one are refused. A loss or gradient that is not finite leaves the
weights as they are, and the step counts as done.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .errors import BadStepError, CommandError, IncarnationError, NotBegunError, StepOrderError
from .images import ImageSource
from .keeper import Keeper, Saved, resume_step
from .lora import Base, LoRAOptions, checkpoint_base, find_base
from .loss import LossResult, TokenData, update_loss
from .model import Policy, TokenScores
from .offenders import offenders
from .optim import AdamW, AdamWOptions
from .ranks import Ranks
from .selection import select
from .shard import Flattener, Loaded, MicroBatch, Turn, by_trace
from .sharding import rest
from .types import Report, Shard, StepOptions
from .weights import CheckpointError, open_tensors, stored_digest


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
    lora: LoRAOptions | None = None  # None trains the weights themselves


@dataclass(frozen=True)
class EngineOptions:
    """How a rank trains, whatever the stage."""

    device: torch.device
    dtype: torch.dtype
    work: Path  # published policies lie below it
    fetch: Callable[[str], bytes]  # bytes of an image by digest
    max_pixels: int = 0  # 0 is the checkpoint's own
    checkpointing: bool = False
    sharding: bool = False  # several ranks cut the weights between them


@dataclass
class _Running:
    """A stage that has begun."""

    stage: Stage
    policy: Policy
    reference: Policy | None
    optimizer: AdamW
    flattener: Flattener
    keeper: Keeper
    sharded: bool
    step_done: int
    loaded: dict[int, Loaded]


@dataclass(frozen=True)
class Scores:
    """What the weights say about a shard, flat over its traces in order, [sum T] float32, nats."""

    old: np.ndarray
    entropy: np.ndarray
    reference: np.ndarray | None
    seconds: float


class Engine:
    """One rank of the trainer."""

    def __init__(self, options: EngineOptions, ranks: Ranks | None = None) -> None:
        self.options = options
        self.ranks = ranks or Ranks()
        self.incarnation = 0
        self._running: _Running | None = None

    @property
    def step_done(self) -> int:
        """Return the optimizer step that the weights stand at."""
        return self._running.step_done if self._running else 0

    def fence(self, incarnation: int) -> None:
        """Refuse a command of an older coordinator."""
        if incarnation < self.incarnation:
            raise IncarnationError(self.incarnation, incarnation)

    def _sharded(self, stage: Stage) -> bool:
        """Say whether the weights of a stage are cut over the ranks; those under adapters are not."""
        return self.options.sharding and self.ranks.world > 1 and stage.lora is None

    def begin(self, stage: Stage) -> None:
        """Make ready for a stage. What can be refused without loading weights is, before the old stage is dropped."""
        self.fence(stage.incarnation)
        self.incarnation = stage.incarnation
        source = stage.resume / "policy" if stage.resume and not stage.lora else stage.model
        if stage.resume and (at := resume_step(stage.resume)) != stage.step:
            message = f"resume point {stage.resume} stands at step {at}, want {stage.step}"
            raise CheckpointError(message)
        Policy.check(source)
        if stage.reference is not None and (found := stored_digest(stage.reference)) != stage.reference_digest:
            message = f"reference {stage.reference} has digest {found}, want {stage.reference_digest}"
            raise CheckpointError(message)
        base = self._base(stage)
        if self._running:
            self._running.keeper.wait()
        self._running = None
        self._running = self._open(stage, source, base)

    def _base(self, stage: Stage) -> Base | None:
        """Return what the stage's adapters are added to; None when it trains the weights themselves."""
        if stage.lora is None:
            if stage.resume and checkpoint_base(stage.resume):
                message = f"{stage.resume} is of a stage that trained adapters (trainer.lora_rank), this one does not"
                raise CheckpointError(message)
            return None
        known = {stage.reference: stage.reference_digest} if stage.reference else {}
        return find_base(stage.model, stage.resume, known)

    def _open(self, stage: Stage, source: Path, base: Base | None) -> _Running:
        o = self.options
        sharded = self._sharded(stage)
        policy = Policy.load(source, o.device, o.dtype, o.checkpointing, sharded)
        policy.freeze(stage.frozen)
        if stage.lora and base:
            policy.adapt(stage.lora, base)
        if sharded:
            policy.shard()
        optimizer = AdamW(policy.model.named_parameters(), stage.optimizer)
        if stage.resume:
            with open_tensors(stage.resume / "optimizer.safetensors") as state:
                optimizer.restore(state)
        reference = None
        if stage.reference is not None and base and base.digest == stage.reference_digest:
            reference = policy.without_adapters()
        elif stage.reference is not None:
            reference = Policy.load(stage.reference, o.device, o.dtype, sharded=sharded)
            reference.freeze(("vision", "projector", "language"))
            if sharded:
                reference.shard()
        images = ImageSource(source, policy.family, o.fetch, o.max_pixels)
        return _Running(
            stage=stage,
            policy=policy,
            reference=reference,
            optimizer=optimizer,
            flattener=Flattener(policy, images, o.device),
            keeper=Keeper(o.work, source, policy, optimizer, write=self.ranks.rank == 0),
            sharded=sharded,
            step_done=stage.step,
            loaded={},
        )

    def _current(self) -> _Running:
        if self._running is None:
            message = "no stage has begun"
            raise NotBegunError(message)
        return self._running

    def load(self, shard: Shard) -> None:
        """Take the data of one update and lay it out in packed rows; a step may be loaded again."""
        run = self._current()
        if not run.step_done < shard.step <= run.step_done + len(run.loaded) + 1:
            raise StepOrderError(run.step_done + len(run.loaded), shard.step)
        run.loaded[shard.step] = run.flattener.lay_out(shard)

    @torch.no_grad()
    def score(self, step: int, temperature: float, banned: tuple[int, ...]) -> Scores:
        """Score a loaded shard under the current weights."""
        run, started = self._current(), time.perf_counter()
        loaded = self._loaded(run, step)
        for turn in self._turns(run, loaded, banned):
            scores = _score(run.policy, turn, temperature, banned)
            reference = _score(run.reference, turn, temperature, banned) if run.reference is not None else None
            if turn.micro is not None:
                turn.micro.old, turn.micro.entropy = scores.logprobs, scores.entropies
                turn.micro.reference = reference.logprobs if reference is not None else None
        loaded.scored_with = (temperature, banned)
        old, entropy = by_trace(loaded, "old"), by_trace(loaded, "entropy")
        assert old is not None
        assert entropy is not None
        reference = by_trace(loaded, "reference") if run.reference is not None else None
        return Scores(old, entropy, reference, time.perf_counter() - started)

    def step(self, step: int, options: StepOptions, advantages: Sequence[Sequence[np.ndarray]]) -> Report:
        """Apply one update. advantages is [Q][G] of [1] or [T]."""
        run = self._current()
        report, loaded = self.gradients(step, options, advantages)
        bad = self._not_finite(report)
        run.step_done = step
        del run.loaded[step]
        if bad:
            run.optimizer.zero_grad()
            turns = self._turns(run, loaded, options.banned)
            score = partial(_score, run.policy, temperature=options.temperature, banned=options.banned)
            raise BadStepError(step, bad, offenders(loaded, turns, score, advantages))
        started = time.perf_counter()
        scale = min(1.0, options.grad_clip / (report.grad_norm + 1e-6)) if options.grad_clip else 1.0
        run.optimizer.step(options.learning_rate, scale)
        run.optimizer.zero_grad()
        if self.options.device.type == "cuda":
            # Not of the whole device: a broadcast may wait there for a server.
            torch.cuda.current_stream(self.options.device).synchronize()
            report.peak_bytes = torch.cuda.max_memory_allocated(self.options.device)
        report.seconds["optimizer"] = time.perf_counter() - started
        return report

    def gradients(
        self, step: int, options: StepOptions, advantages: Sequence[Sequence[np.ndarray]]
    ) -> tuple[Report, Loaded]:
        """Compute loss and gradients of an update, summed over ranks, and apply nothing."""
        run = self._current()
        if step != run.step_done + 1:
            raise StepOrderError(run.step_done, step)
        loaded, started = self._loaded(run, step), time.perf_counter()
        self._check_step(loaded, options, advantages)
        values = [run.flattener.advantages(m, advantages) for m in loaded.micro_batches]
        kept, hit = select(self.ranks, loaded.micro_batches, values, options)
        run.optimizer.zero_grad()
        sums: dict[str, torch.Tensor] = {}
        maxima: dict[str, torch.Tensor] = {}
        own = zip(values, kept, hit, strict=True)
        for turn in self._turns(run, loaded, options.banned):
            scores = _score(run.policy, turn, options.temperature, options.banned)
            if turn.micro is None:
                _backward(run.policy, 0 * scores.logprobs.sum())
                continue
            result = _loss(turn.micro, scores, *next(own), options)
            _backward(run.policy, result.loss)
            for name, value in result.sums.items():
                sums[name] = sums[name] + value if name in sums else value
            for name, value in result.maxima.items():
                maxima[name] = torch.maximum(maxima[name], value) if name in maxima else value
        computed = time.perf_counter()
        gradients = run.optimizer.gradients()
        if not run.sharded:
            self.ranks.sum_gradients(gradients)
        report = Report(step=step, tokens=sum(int(m.mask.sum()) for m in loaded.micro_batches))
        report.sums, report.maxima = _numbers(sums), _numbers(maxima)
        report.loss = sum(report.sums.get(n, 0.0) for n in ("policy", "kl", "bonus"))
        report.grad_norm = float(run.optimizer.grad_norm())
        if run.sharded:
            report.grad_norm = math.sqrt(self.ranks.sum([report.grad_norm**2])[0])
        report.seconds = {"train": computed - started, "reduce": time.perf_counter() - computed}
        return report, loaded

    def _turns(self, run: _Running, loaded: Loaded, banned: Sequence[int]) -> list[Turn]:
        """Return the forward passes of an update, of which sharded ranks make the same number in the same order."""
        busy = None
        if run.sharded:
            busy = np.zeros((loaded.shard.micro_batches, 2))
            for micro in loaded.micro_batches:
                busy[micro.index] = 1, micro.pixels is not None
            busy = self.ranks.largest(busy) > 0
        return run.flattener.turns(loaded, busy, banned)

    def _check_step(self, loaded: Loaded, options: StepOptions, advantages: Sequence[Sequence[np.ndarray]]) -> None:
        groups = loaded.shard.groups
        have, want = [len(a) for a in advantages], [len(g.traces) for g in groups]
        if have != want:
            message = f"advantages have {have} traces a group, the batch {want}"
            raise CommandError(message)
        if loaded.scored_with is None:
            needs = [options.kl and "kl", options.covariance_kind and "covariance"]
            needs.append(0 < options.entropy_quantile < 1 and "entropy_quantile")
            if missing := [n for n in needs if n]:
                message = f"{', '.join(missing)} needs a score of step {loaded.shard.step} first"
                raise CommandError(message)
        elif loaded.scored_with != (options.temperature, options.banned) and options.loss != "nll":
            message = f"step {loaded.shard.step} was scored with another temperature or other banned ids"
            raise CommandError(message)
        if options.kl and self._current().reference is None:
            message = f"kl {options.kl} needs a reference, which the stage has not"
            raise CommandError(message)

    def _not_finite(self, report: Report) -> str:
        if not np.isfinite(self.ranks.sum([report.loss])[0]):
            return "loss"
        return "" if np.isfinite(report.grad_norm) else "gradient"

    def _loaded(self, run: _Running, step: int) -> Loaded:
        if step not in run.loaded:
            message = f"step {step} is not loaded"
            raise CommandError(message)
        return run.loaded[step]

    def shard(self, step: int) -> Shard:
        """Return what was loaded for a step, which must be the next one."""
        run = self._current()
        if step != run.step_done + 1:
            raise StepOrderError(run.step_done, step)
        return self._loaded(run, step).shard

    def publish(self, version: int) -> tuple[Path, str]:
        """Make the current weights a Hugging Face directory; return it and the digest of the weights."""
        return self._current().keeper.publish(f"{self.incarnation}.{version}")

    def publish_adapter(self, version: int) -> tuple[Path, str]:
        """Make the current adapters a peft directory; return it and the digest of the policy."""
        return self._current().keeper.publish_adapter(f"{self.incarnation}.{version}")

    def snapshot(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return copies of the weights on the device and on the host, for rank 0; the others get nothing."""
        device = self._current().keeper.snapshot(self.options.device)
        if self.options.device.type == "cpu":
            return device, device
        host = {n: t.to("cpu") for n, t in device.items()}  # waits for the device, so both are whole
        return device, host

    def save(self, path: Path) -> tuple[threading.Event, list[Saved | Exception]]:
        """Snapshot now, write below path in the background; the event is set when it is durable or failed."""
        run = self._current()
        return run.keeper.save(path, run.step_done)


def _score(policy: Policy, turn: Turn, temperature: float, banned: tuple[int, ...]) -> TokenScores:
    return policy.score(turn.packed, turn.pixels, temperature, banned, turn.blank)


def _loss(
    micro: MicroBatch,
    scores: TokenScores,
    advantages: torch.Tensor,
    kept: torch.Tensor | None,
    hit: torch.Tensor | None,
    options: StepOptions,
) -> LossResult:
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
    return update_loss(scores.logprobs, scores.entropies, data, options)


def _backward(policy: Policy, loss: torch.Tensor) -> None:
    """Add to the gradients; a row without images reaches nothing that is trained when only the vision side is."""
    if loss.requires_grad:
        loss.backward()
    else:
        rest(policy.model)  # what stays whole would go into the next forward pass as it was before the update


def _numbers(values: dict[str, torch.Tensor]) -> dict[str, float]:
    """Move scalars to the host in one transfer."""
    if not values:
        return {}
    stacked = torch.stack([v.double() for v in values.values()]).tolist()
    return dict(zip(values, stacked, strict=True))
