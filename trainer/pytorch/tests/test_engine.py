"""The engine on one rank: fences, splits, resume, refusals, selections, freezing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PAD, VIDEO, Store, advantages, batch, options, run_step, shard, stage, write_checkpoint
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from uadt_trainer.engine import Engine
from uadt_trainer.errors import (
    BadStepError,
    CommandError,
    GroupError,
    IncarnationError,
    NotBegunError,
    StepOrderError,
)
from uadt_trainer.keeper import Saved
from uadt_trainer.optim import AdamWOptions
from uadt_trainer.types import Group, Part, Shard, Trace
from uadt_trainer.weights import CheckpointError, stored_digest

Make = Callable[[], Engine]


def save(engine: Engine, path: Path) -> Saved:
    done, outcome = engine.save(path)
    assert done.wait(60)
    assert isinstance(outcome[0], Saved), outcome[0]
    return outcome[0]


def test_nothing_works_before_begin(engine: Make, store: Store) -> None:
    e, groups = engine(), batch(store, 1)
    for call in (
        lambda: e.load(shard(1, groups)),
        lambda: e.score(1, 1.0, ()),
        lambda: e.step(1, options(groups), advantages(groups)),
        lambda: e.publish(0),
        lambda: e.save(Path("x")),
    ):
        with pytest.raises(NotBegunError):
            call()


@pytest.mark.parametrize("split", ["groups", "traces"])
def test_the_split_does_not_change_the_update(engine: Make, store: Store, checkpoint: Path, split: str) -> None:
    groups = batch(store, 1)
    change = {
        "loss": "ppo",
        "entropy_bonus": 0.01,
        "entropy_quantile": 0.6,
        "covariance_kind": "kl",
        "covariance_share": 0.2,
        "covariance_coef": 0.5,
        "aggregation": "seq_mean_token_mean",
        "correction_level": "sequence",
    }
    gradients, reports = [], []
    for how in ("one", split):
        e = engine()
        e.begin(stage(checkpoint))
        e.load(shard(1, groups, how))
        e.score(1, 1.0, ())
        report, _ = e.gradients(1, options(groups, **change), advantages(groups))
        reports.append(report)
        gradients.append({n: p.grad.clone() for n, p in e._running.optimizer.parameters})
    assert reports[0].loss == pytest.approx(reports[1].loss, rel=1e-5)
    assert reports[0].grad_norm == pytest.approx(reports[1].grad_norm, rel=1e-5)
    assert reports[0].tokens == reports[1].tokens
    assert reports[0].sums == pytest.approx(reports[1].sums, rel=1e-4, abs=1e-6)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-4)


def test_resume_is_exact(engine: Make, store: Store, checkpoint: Path, tmp_path: Path) -> None:
    whole = engine()
    whole.begin(stage(checkpoint))
    for n in (1, 2):
        run_step(whole, n, batch(store, n))
    assert save(whole, tmp_path / "saved").step == 2
    last = [run_step(whole, n, batch(store, n)) for n in (3, 4)][-1]
    _, digest = whole.publish(4)

    e = engine()
    with pytest.raises(CheckpointError, match="stands at step 2, want 3"):
        e.begin(stage(checkpoint, resume=tmp_path / "saved", step=3))
    e.begin(stage(checkpoint, resume=tmp_path / "saved", step=2, incarnation=4))
    again = [run_step(e, n, batch(store, n)) for n in (3, 4)][-1]
    assert (again.loss, again.grad_norm) == (last.loss, last.grad_norm)
    assert e.publish(4)[1] == digest


def test_a_save_is_of_the_moment_it_was_asked_for(engine: Make, store: Store, checkpoint: Path, tmp_path: Path) -> None:
    e = engine()
    e.begin(stage(checkpoint))
    run_step(e, 1, batch(store, 1))
    _, before = e.publish(1)
    done, outcome = e.save(tmp_path / "saved")
    run_step(e, 2, batch(store, 2))
    assert done.wait(60)
    assert outcome[0].digest == before
    assert stored_digest(tmp_path / "saved" / "policy") == before
    assert e.publish(2)[1] != before


def test_a_save_that_fails_says_so(engine: Make, checkpoint: Path, tmp_path: Path) -> None:
    e = engine()
    e.begin(stage(checkpoint))
    (tmp_path / "file").write_text("")
    done, outcome = e.save(tmp_path / "file" / "below")
    assert done.wait(60)
    assert isinstance(outcome[0], OSError)


def test_steps_are_fenced(engine: Make, store: Store, checkpoint: Path) -> None:
    e, groups = engine(), batch(store, 1)
    e.begin(stage(checkpoint))
    with pytest.raises(StepOrderError, match="step 0, got step 2"):
        e.load(shard(2, groups))
    run_step(e, 1, groups)
    for n in (1, 3):
        with pytest.raises(StepOrderError) as caught:
            e.step(n, options(groups), advantages(groups))
        assert (caught.value.have, caught.value.got) == (1, n)
    with pytest.raises(CommandError, match="step 2 is not loaded"):
        e.step(2, options(groups), advantages(groups))
    e.load(shard(2, groups))
    e.load(shard(3, groups))  # several updates of one rollout batch
    e.load(shard(2, groups))  # again, as after a refusal on another rank
    with pytest.raises(StepOrderError):
        e.load(shard(5, groups))


def test_a_lower_incarnation_is_refused(engine: Make, store: Store, checkpoint: Path) -> None:
    e = engine()
    e.begin(stage(checkpoint))
    run_step(e, 1, batch(store, 1))
    with pytest.raises(IncarnationError):
        e.begin(stage(checkpoint, incarnation=2))
    assert e.step_done == 1
    e.begin(stage(checkpoint, incarnation=4))
    assert e.step_done == 0


@pytest.mark.parametrize("what", ["advantage", "rate"])
def test_not_finite_changes_nothing_and_counts_as_done(engine: Make, store: Store, checkpoint: Path, what: str) -> None:
    e, groups = engine(), batch(store, 1)
    e.begin(stage(checkpoint))
    before = e.publish(0)[1]
    e.load(shard(1, groups))
    e.score(1, 1.0, ())
    values = advantages(groups)
    if what == "advantage":
        values[1][0][0] = np.nan
    else:
        values[0][0][0] = 3e38
        values[0][2][0] = -3e38
    with pytest.raises(BadStepError) as caught:
        e.step(1, options(groups, aggregation="seq_mean_token_sum"), values)
    assert caught.value.step == 1
    if what == "advantage":
        assert caught.value.groups == ["g1-1"]
    assert e.publish(1)[1] == before
    run_step(e, 2, groups)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_zero_advantages_move_nothing_but_by_decay(engine: Make, store: Store, checkpoint: Path, decay: float) -> None:
    e, groups = engine(), batch(store, 1)
    e.begin(stage(checkpoint, optimizer=AdamWOptions(weight_decay=decay)))
    before = e.publish(0)[1]
    e.load(shard(1, groups))
    zeros = [[np.zeros(1, dtype=np.float32) for _ in g.traces] for g in groups]
    e.step(1, options(groups), zeros)
    assert (e.publish(1)[1] != before) == (decay > 0)


def test_reference_is_frozen_and_named_by_digest(engine: Make, store: Store, checkpoint: Path, tmp_path: Path) -> None:
    e, groups = engine(), batch(store, 1)
    with pytest.raises(CheckpointError, match="want nothing"):
        e.begin(stage(checkpoint, reference=checkpoint, reference_digest="nothing"))
    digest = stored_digest(checkpoint)
    e.begin(stage(checkpoint, reference=checkpoint, reference_digest=digest))
    assert e.publish(0)[1] == digest
    e.load(shard(1, groups))
    first = e.score(1, 0.9, (PAD, VIDEO))
    assert np.array_equal(first.old, first.reference)
    report = e.step(1, options(groups, kl="k3", kl_coef=0.1, temperature=0.9, banned=(PAD, VIDEO)), advantages(groups))
    assert report.sums["reference"] == 0
    run_step(e, 2, groups, temperature=0.9, banned=(PAD, VIDEO))
    e.load(shard(3, groups))
    later = e.score(3, 0.9, (PAD, VIDEO))
    assert np.array_equal(later.reference, first.reference)
    assert not np.array_equal(later.old, first.old)


def test_what_a_step_needs_is_asked_for(engine: Make, store: Store, checkpoint: Path) -> None:
    e, groups = engine(), batch(store, 1)
    e.begin(stage(checkpoint))
    e.load(shard(1, groups))
    for change in ({"kl": "k3"}, {"covariance_kind": "clip"}, {"entropy_quantile": 0.5}):
        with pytest.raises(CommandError, match="needs a score of step 1 first"):
            e.step(1, options(groups, **change), advantages(groups))
    e.score(1, 1.0, ())
    with pytest.raises(CommandError, match="needs a reference"):
        e.step(1, options(groups, kl="k3"), advantages(groups))
    with pytest.raises(CommandError, match="another temperature"):
        e.step(1, options(groups, temperature=0.5), advantages(groups))
    with pytest.raises(CommandError, match="traces a group"):
        e.step(1, options(groups), advantages(groups)[1:])
    short = advantages(groups)
    short[0][0] = np.zeros(8, dtype=np.float32)
    with pytest.raises(CommandError, match="shape"):
        e.step(1, options(groups), short)
    per_token = [
        [np.full(len(t.tokens), a[0]) for t, a in zip(g.traces, rows, strict=True)]
        for g, rows in zip(groups, advantages(groups), strict=True)
    ]
    e.step(1, options(groups), per_token)


def test_groups_that_do_not_fit_are_refused_by_name(engine: Make, store: Store, checkpoint: Path) -> None:
    e, good = engine(), batch(store, 1)
    e.begin(stage(checkpoint))

    def spoiled(**changes: object) -> list[Group]:
        return [good[0], Group(**{**good[1].__dict__, **changes}), good[2]]

    wrong = Trace(tokens=np.array([5, 1 << 30], dtype=np.int32), mask=np.ones(2, dtype=bool))
    cases = {
        "token id 1073741824": spoiled(traces=(good[1].traces[0], wrong)),
        "39 image tokens, our own expansion 9": spoiled(images=good[1].images[:1]),
        "prompt is empty": spoiled(prompt=np.zeros(0, dtype=np.int32)),
    }
    store.blobs["0" * 64] = b"no image"
    cases["0000: cannot identify"] = spoiled(images=(good[1].images[0], "0" * 64))
    for words, groups in cases.items():
        with pytest.raises(GroupError, match=words) as caught:
            e.load(shard(1, groups))
        assert caught.value.group == "g1-1"
    unplanned = shard(1, good)
    with pytest.raises(GroupError, match="planned"):
        e.load(Shard(1, unplanned.groups, unplanned.parts[1:], 1))
    with pytest.raises(CommandError, match="does not fit"):
        e.load(Shard(1, unplanned.groups, (*unplanned.parts[:2], Part(0, 7, 0, 1)), 1))
    run_step(e, 1, good)


def test_an_image_pad_in_a_response_is_a_token_like_others(engine: Make, store: Store, checkpoint: Path) -> None:
    e, groups = engine(), batch(store, 1)
    first = groups[0].traces[0]
    odd = Trace(np.where(np.arange(9) == 4, PAD, first.tokens).astype(np.int32), first.mask, first.rollout_logprobs)
    groups[0] = Group(groups[0].id, groups[0].prompt, groups[0].images, (odd, *groups[0].traces[1:]), 0)
    e.begin(stage(checkpoint))
    e.load(shard(1, groups))
    assert np.isfinite(e.score(1, 1.0, ()).old).all()


def test_banned_ids_have_no_probability(engine: Make, store: Store, checkpoint: Path) -> None:
    e, groups = engine(), batch(store, 1)
    e.begin(stage(checkpoint))
    e.load(shard(1, groups))
    free, banned = e.score(1, 0.8, ()), e.score(1, 0.8, (PAD, VIDEO))
    assert (banned.old >= free.old).all() and (banned.old > free.old).any()
    # What is left is renormalised: p / (1 - p(banned)), by transformers' own full logits of the first trace.
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    group, trace = groups[2], groups[2].traces[0]
    ids = torch.from_numpy(np.concatenate((group.prompt, trace.tokens)).astype(np.int64))[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(group.prompt) - 1 : -1].double() / 0.8
    logits[:, [PAD, VIDEO]] = -torch.inf
    logp = torch.log_softmax(logits, -1)
    expected = logp.gather(1, ids[0, len(group.prompt) :, None])[:, 0].numpy()
    at = sum(len(t.tokens) for g in groups[:2] for t in g.traces)
    np.testing.assert_allclose(banned.old[at : at + len(expected)], expected, atol=2e-5)
    entropy = -(logp.exp() * logp.clamp_min(-1e9)).sum(-1).numpy()
    np.testing.assert_allclose(banned.entropy[at : at + len(entropy)], entropy, atol=2e-5)


@pytest.mark.parametrize("frozen", [("language",), ("vision", "projector"), ("vision",)])
def test_frozen_parts_do_not_move(
    engine: Make, store: Store, checkpoint: Path, frozen: tuple[str, ...], tmp_path: Path
) -> None:
    e = engine()
    e.begin(stage(checkpoint, frozen=frozen, optimizer=AdamWOptions(weight_decay=0.1)))
    run_step(e, 1, batch(store, 1))
    path, digest = e.publish(1)
    assert stored_digest(path) == digest
    before, after = load_file(checkpoint / "model.safetensors"), load_file(path / "model.safetensors")
    assert set(before) == set(after)
    moved = {part(n) for n, t in after.items() if not torch.equal(t, before[n])}
    assert moved == {"vision", "projector", "language"} - set(frozen)


def part(name: str) -> str:
    if name.startswith("visual.merger"):
        return "projector"
    return "vision" if name.startswith("visual.") else "language"


@pytest.mark.parametrize("tie", [True, False])
def test_a_published_directory_is_the_source_with_other_weights(
    engine: Make, store: Store, tmp_path: Path, tie: bool
) -> None:
    source = write_checkpoint(tmp_path / "source", tie)
    e = engine()
    e.begin(stage(source))
    path, digest = e.publish(0)
    assert digest == stored_digest(source) == stored_digest(path)
    for name in ("config.json", "tokenizer.json", "preprocessor_config.json"):
        assert (path / name).read_bytes() == (source / name).read_bytes()
    run_step(e, 1, batch(store, 1))
    second, moved = e.publish(1)
    assert path.is_dir() and moved != digest
    run_step(e, 2, batch(store, 2))
    third, _ = e.publish(2)
    assert second.is_dir() and third.is_dir() and not path.exists()
    # transformers opens it and scores as the engine does.
    groups = batch(store, 3)
    e.load(shard(3, groups))
    ours = e.score(3, 1.0, ()).old
    model = AutoModelForImageTextToText.from_pretrained(third, dtype=torch.float32, attn_implementation="eager")
    group, trace = groups[2], groups[2].traces[1]
    ids = torch.from_numpy(np.concatenate((group.prompt, trace.tokens)).astype(np.int64))[None]
    with torch.no_grad():
        logp = torch.log_softmax(model(input_ids=ids).logits[0, len(group.prompt) - 1 : -1], -1)
    expected = logp.gather(1, ids[0, len(group.prompt) :, None])[:, 0].numpy()
    np.testing.assert_allclose(ours[-len(expected) :], expected, atol=2e-5)


def test_no_begin_without_a_model_of_a_known_family(engine: Make, checkpoint: Path, tmp_path: Path) -> None:
    e = engine()
    with pytest.raises(Exception, match="no config.json"):
        e.begin(stage(tmp_path / "nothing"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(Exception, match="neither"):
        e.begin(stage(other))
    with pytest.raises(Exception, match="no such file"):
        e.begin(stage(checkpoint, resume=tmp_path / "nothing"))
    e.begin(stage(checkpoint))


def test_images_of_several_groups_are_prepared_once(engine: Make, store: Store, checkpoint: Path) -> None:
    e = engine()
    e.begin(stage(checkpoint))
    run_step(e, 1, batch(store, 1))
    assert len(store.fetched) == 2
    run_step(e, 2, batch(store, 2))
    assert len(store.fetched) == 2


def test_steps_learn(engine: Make, store: Store, checkpoint: Path) -> None:
    e, groups = engine(), batch(store, 1)
    e.begin(stage(checkpoint))
    means = []
    for n in range(1, 7):
        e.load(shard(n, groups))
        means.append(float(e.score(n, 1.0, ()).old.mean()))
        ones = [[np.ones(1, dtype=np.float32) for _ in g.traces] for g in groups]
        report = e.step(n, options(groups, loss="nll"), ones)
        assert report.tokens == options(groups).denominators.tokens
    assert means == sorted(means)
