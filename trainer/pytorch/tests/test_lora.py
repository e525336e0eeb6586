"""Adapters against peft's own: scores, gradients, merged weights, directories, resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import micro_internvl
import numpy as np
import pytest
import test_internvl
import test_model
import torch
from conftest import Store, batch, run_step, shard, stage, write_checkpoint
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from uadt_trainer.engine import Engine
from uadt_trainer.errors import CommandError
from uadt_trainer.images import ImageSource
from uadt_trainer.keeper import Saved
from uadt_trainer.lora import PROJECTIONS, WEIGHTS, Base, LoRAOptions
from uadt_trainer.model import Policy
from uadt_trainer.optim import AdamW, AdamWOptions
from uadt_trainer.packing import pack
from uadt_trainer.shard import Flattener
from uadt_trainer.weights import CheckpointError, stored_digest, write_directory
from uadt_trainer.weights import digest as weights_digest

Make = Callable[[], Engine]
LORA = LoRAOptions(rank=4, alpha=12.0, seed=5)
CPU = torch.device("cpu")


def disturbed(adapters: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """B begins at 0, where A has no gradient: other values for both."""
    g = torch.Generator().manual_seed(seed)
    return {n: 0.04 * torch.randn(t.shape, generator=g) for n, t in sorted(adapters.items())}


def write_adapter(path: Path, policy: Policy, seed: int) -> Path:
    """Give a policy other adapters, and write them as it publishes them."""
    assert policy.adapters
    values = disturbed(policy.adapters.snapshot(CPU), seed)
    for name, parameter in policy.model.named_parameters():
        key = "base_model.model." + name.replace(".default", "")
        if key in values:
            parameter.data.copy_(values.pop(key))
    assert not values
    write_directory(path, policy.adapters.snapshot(CPU), policy.adapters.config(), WEIGHTS)
    return path


def theirs(model: Path, adapter: Path) -> PeftModel:
    base = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    return PeftModel.from_pretrained(base, adapter, is_trainable=True)


def same_gradients(policy: Policy, peft: PeftModel) -> int:
    """Compare every gradient; return how many there were."""
    expected = {n.removeprefix("base_model.model."): p.grad for n, p in peft.named_parameters()}
    compared = 0
    for name, p in policy.model.named_parameters():
        if expected[name] is None:
            assert p.grad is None, name
            continue
        cosine = torch.nn.functional.cosine_similarity(p.grad.flatten(), expected[name].flatten(), dim=0)
        assert cosine > 0.99999, f"{name}: cosine {cosine}"
        torch.testing.assert_close(p.grad, expected[name], atol=2e-4, rtol=2e-3)
        compared += 1
    return compared


@pytest.mark.parametrize("targets", [PROJECTIONS, ("v_proj", "down_proj")])
def test_qwen_is_what_peft_computes(checkpoint: Path, tmp_path: Path, targets: tuple[str, ...]) -> None:
    made, grids, pixels = test_model.groups(1)
    policy = Policy.load(checkpoint, CPU, torch.float32, checkpointing=True)
    policy.adapt(replace(LORA, targets=targets), Base(checkpoint, "d"))
    adapter = write_adapter(tmp_path / "adapter", policy, 1)
    positions = [policy.prompt_positions(g.prompt, images) for g, images in zip(made, grids, strict=True)]
    packed = pack(made, [(0, len(g.traces)) for g in made], policy.image_token, positions)
    scores = policy.score(packed, pixels, 1.0, ())
    peft = theirs(checkpoint, adapter)
    logprobs, entropies = test_model.naive(peft, made, grids, pixels)
    torch.testing.assert_close(scores.logprobs, logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.entropies, entropies, atol=1e-5, rtol=0)
    with torch.no_grad(), peft.disable_adapter():
        base = test_model.naive(peft, made, grids, pixels)[0]
    assert (base - logprobs).abs().max() > 0.1
    with torch.no_grad():
        ours = policy.without_adapters().score(packed, pixels, 1.0, ()).logprobs
    torch.testing.assert_close(ours, base, atol=1e-5, rtol=0)

    coefficients = torch.linspace(-1, 1, logprobs.numel())
    (scores.logprobs * coefficients + 0.3 * scores.entropies).sum().backward()
    (logprobs * coefficients + 0.3 * entropies).sum().backward()
    assert same_gradients(policy, peft) == 2 * len(targets) * 2  # A and B, two layers


def test_internvl_is_what_peft_computes(store: Store, tmp_path: Path) -> None:
    model = micro_internvl.write_checkpoint(tmp_path / "intern")
    made, pixels = test_internvl.groups(model, store)
    policy = Policy.load(model, CPU, torch.float32)
    policy.adapt(LORA, Base(model, "d"))
    adapter = write_adapter(tmp_path / "adapter", policy, 2)
    images = ImageSource(model, policy.family, store.fetch, 0)
    micro = Flattener(policy, images, CPU).lay_out(shard(1, made)).micro_batches[0]
    scores = policy.score(micro.packed, micro.pixels, 1.0, ())
    peft = theirs(model, adapter)
    expected = test_internvl.naive_logprobs(peft, made, pixels)
    torch.testing.assert_close(scores.logprobs, expected, atol=1e-5, rtol=0)
    coefficients = torch.linspace(-1, 1, expected.numel())
    (scores.logprobs * coefficients).sum().backward()
    (expected * coefficients).sum().backward()
    assert same_gradients(policy, peft) == 2 * 7 * 2


def save(e: Engine, path: Path) -> Saved:
    done, outcome = e.save(path)
    assert done.wait(60)
    assert isinstance(outcome[0], Saved), outcome[0]
    return outcome[0]


def test_only_adapters_move_and_the_policy_is_merged(
    engine: Make, store: Store, checkpoint: Path, tmp_path: Path
) -> None:
    e = engine()
    e.begin(stage(checkpoint, lora=LORA))
    path, digest = e.publish(0)
    assert digest == stored_digest(checkpoint)
    zero, named = e.publish_adapter(0)
    assert all(not t.any() for n, t in load_file(zero / "adapter_model.safetensors").items() if "lora_B" in n)
    for n in (1, 2):
        run_step(e, n, batch(store, n))
    path, digest = e.publish(2)
    adapter, moved = e.publish_adapter(2)
    assert moved not in (named, digest) and str(adapter).endswith(moved[:12])
    before, after = load_file(checkpoint / "model.safetensors"), load_file(path / "model.safetensors")
    assert set(before) == set(after)
    changed = {n for n in after if not torch.equal(after[n], before[n])}
    assert changed == {n for n in after if "model.layers." in n and n.split(".")[-2] in PROJECTIONS and "weight" in n}
    merged = theirs(checkpoint, adapter).merge_and_unload().state_dict()
    for name in changed:
        torch.testing.assert_close(
            after[name], merged[name.replace("model.layers.", "model.language_model.layers.")], atol=1e-6, rtol=1e-6
        )

    saved = save(e, tmp_path / "saved")
    assert (saved.digest, saved.adapter) == (digest, moved)
    assert stored_digest(tmp_path / "saved" / "policy") == digest
    alone = load_file(tmp_path / "saved" / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(t, alone[n]) for n, t in load_file(adapter / "adapter_model.safetensors").items())
    config = json.loads((tmp_path / "saved" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 12.0, str(checkpoint))

    _, broadcast = e.snapshot()
    assert weights_digest(broadcast) == digest

    # What comes after starts from the merged policy, which scores as the adapters did.
    groups = batch(store, 3)
    e.load(shard(3, groups))
    adapted = e.score(3, 1.0, ()).old
    e.begin(stage(tmp_path / "saved" / "policy", lora=LORA))
    assert e.publish(0)[1] == digest
    e.load(shard(1, groups))
    np.testing.assert_allclose(e.score(1, 1.0, ()).old, adapted, atol=1e-5)


def test_every_rank_makes_the_same_adapters(engine: Make, checkpoint: Path) -> None:
    digests = []
    for noise, seed in ((1, 5), (2, 5), (2, 6)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        e = engine()
        e.begin(stage(checkpoint, lora=replace(LORA, seed=seed)))
        assert torch.equal(torch.get_rng_state(), before)
        digests.append(e.publish_adapter(0)[1])
    assert digests[0] == digests[1] != digests[2]


def test_resume_is_exact(engine: Make, store: Store, checkpoint: Path, tmp_path: Path) -> None:
    whole = engine()
    whole.begin(stage(checkpoint, lora=LORA))
    for n in (1, 2):
        run_step(whole, n, batch(store, n))
    saved = save(whole, tmp_path / "saved")
    last = [run_step(whole, n, batch(store, n)) for n in (3, 4)][-1]
    digests = whole.publish(4)[1], whole.publish_adapter(4)[1]

    e = engine()
    e.begin(stage(checkpoint, resume=tmp_path / "saved", step=2, incarnation=4, lora=LORA))
    assert (e.publish(2)[1], e.publish_adapter(2)[1]) == (saved.digest, saved.adapter)
    again = [run_step(e, n, batch(store, n)) for n in (3, 4)][-1]
    assert (again.loss, again.grad_norm) == (last.loss, last.grad_norm)
    assert (e.publish(4)[1], e.publish_adapter(4)[1]) == digests


def test_resume_needs_the_same_base_and_kind(engine: Make, store: Store, checkpoint: Path, tmp_path: Path) -> None:
    e = engine()
    e.begin(stage(checkpoint, lora=LORA))
    run_step(e, 1, batch(store, 1))
    save(e, tmp_path / "adapters")
    other = write_checkpoint(tmp_path / "other", seed=2)
    resume = {"resume": tmp_path / "adapters", "step": 1}
    with pytest.raises(CheckpointError, match=f"{other} has {stored_digest(other)}"):
        e.begin(stage(other, lora=LORA, **resume))
    with pytest.raises(CheckpointError, match="trained adapters"):
        e.begin(stage(checkpoint, **resume))
    with pytest.raises(CheckpointError, match=r"lora_A.default.weight is \(4, 64\), want \(8, 64\)"):
        e.begin(stage(checkpoint, lora=replace(LORA, rank=8), **resume))
    e.begin(stage(checkpoint))
    with pytest.raises(CommandError, match="trains no adapters"):
        e.publish_adapter(0)
    save(e, tmp_path / "weights")
    with pytest.raises(CheckpointError, match="weights that it does not name"):
        e.begin(stage(checkpoint, lora=LORA, resume=tmp_path / "weights"))
    with pytest.raises(CheckpointError, match="want some of"):
        e.begin(stage(checkpoint, lora=replace(LORA, targets=("lm_head",))))


@pytest.mark.parametrize("copied", [False, True])
def test_the_reference_is_the_base(engine: Make, store: Store, checkpoint: Path, tmp_path: Path, copied: bool) -> None:
    """Without a copy of the weights where the reference is what the stage starts from, by path or by digest."""
    reference = checkpoint if not copied else write_checkpoint(tmp_path / "copy")
    other = write_checkpoint(tmp_path / "other", seed=2)
    whole, bare = engine(), engine()
    whole.begin(stage(checkpoint))
    bare.begin(stage(checkpoint, lora=LORA, reference=reference, reference_digest=stored_digest(reference)))
    assert bare._running.reference.model is bare._running.policy.model
    groups = batch(store, 1)
    for e in (whole, bare):
        e.load(shard(1, groups))
    first = bare.score(1, 1.0, ())
    assert np.array_equal(first.old, first.reference)
    np.testing.assert_allclose(first.old, whole.score(1, 1.0, ()).old, atol=1e-6)
    run_step(bare, 1, groups, kl="k3", kl_coef=0.1, learning_rate=1e-2)
    bare.load(shard(2, groups))
    later = bare.score(2, 1.0, ())
    assert np.array_equal(later.reference, first.reference)
    assert np.abs(later.old - first.old).max() > 1e-3
    bare.begin(stage(checkpoint, lora=LORA, reference=other, reference_digest=stored_digest(other)))
    assert bare._running.reference.model is not bare._running.policy.model


def test_bfloat16_merges_float32_masters_and_rounds_once(checkpoint: Path) -> None:
    policy = Policy.load(checkpoint, CPU, torch.bfloat16)
    policy.adapt(LORA, Base(checkpoint, "d"))
    optimizer = AdamW(policy.model.named_parameters(), AdamWOptions())
    g = torch.Generator().manual_seed(1)
    for _, p in optimizer.parameters:
        p.grad = torch.randn(p.shape, generator=g).to(p.dtype)
    optimizer.step(3e-3, 1.0)
    name = "model.language_model.layers.0.mlp.up_proj"
    a, b = (optimizer.master[f"{name}.lora_{x}.default.weight"] for x in "AB")
    assert a.dtype == torch.float32 and not torch.equal(b, b.bfloat16().float())
    weight = policy.tensors()[f"{name}.weight"]
    merged = policy.adapters.merge(f"{name}.weight", weight, optimizer.master)
    assert merged.dtype == torch.bfloat16
    exact = weight.double() + 3.0 * (b.double() @ a.double())
    assert (merged != weight).any()
    assert (merged == exact.bfloat16()).float().mean() > 0.999
