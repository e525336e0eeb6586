"""One rank of a set that runs the cases of FOLDER/cases.json one after the other: RANK WORLD FOLDER."""

from __future__ import annotations

import dataclasses
import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from conftest import Store, advantages, batch, options, stage  # noqa: E402

from uadt_trainer.engine import Engine, EngineOptions  # noqa: E402
from uadt_trainer.keeper import Saved  # noqa: E402
from uadt_trainer.optim import AdamWOptions  # noqa: E402
from uadt_trainer.ranks import Ranks  # noqa: E402
from uadt_trainer.sharding import whole  # noqa: E402
from uadt_trainer.types import Group, Part, Shard  # noqa: E402
from uadt_trainer.weights import stored_digest  # noqa: E402

# (group, micro-batch) of rank 0 and rank 1: first only rank 0 has images, then rank 0 has nothing, then none has.
PLAN = (((0, 0),), ((2, 0), (1, 1)))
# The last micro-batch has no image on any rank.
TEXT_LAST = (((0, 0),), ((1, 0), (2, 1)))
LOSS = {"entropy_quantile": 0.5, "covariance_kind": "clip", "covariance_share": 0.1, "grad_clip": 0.5}


def share(step: int, groups: list[Group], ranks: Ranks, plan: Any) -> tuple[Shard, list[int]]:
    """Return what a rank holds of a batch, and which groups those are."""
    own = plan[ranks.rank] if ranks.world > 1 else [x for part in plan for x in part]
    parts = tuple(Part(micro, i, 0, len(groups[q].traces)) for i, (q, micro) in enumerate(own))
    return Shard(step, tuple(groups[q] for q, _ in own), parts, 3), [q for q, _ in own]


def groups_of(case: dict[str, Any], store: Store, step: int) -> list[Group]:
    """Groups of one image, two images and none, for the family of the case."""
    made = batch(store, step)
    if case["family"] == "qwen":
        return made
    import micro_internvl

    begin, pad, end = micro_internvl.tokenizer().convert_tokens_to_ids(["<img>", "<IMG_CONTEXT>", "</img>"])
    out = []
    for group, count in zip(made, (1, 2, 0), strict=True):
        image = [begin, *[pad] * 4, end]
        prompt = np.array([3, *image * count, 5, 6], dtype=np.int32)
        traces = tuple(dataclasses.replace(t, tokens=t.tokens % 250) for t in group.traces)
        small = [store.add(50, 50, 7 + i) for i in range(count)]
        out.append(dataclasses.replace(group, prompt=prompt, images=tuple(small), traces=traces))
    return out


def run(case: dict[str, Any], ranks: Ranks, folder: Path) -> None:
    """Begin, perhaps at a resume point; update; save; update again; leave what came of it in the folder."""
    store = Store()
    o = EngineOptions(
        torch.device("cpu"),
        getattr(torch, case.get("dtype", "float32")),
        folder / "work",
        store.fetch,
        checkpointing=case.get("checkpointing", False),
        sharding=case["sharding"] == "full",
    )
    engine = Engine(o, ranks)
    model, resume = Path(case["model"]), case.get("resume")
    change: dict[str, Any] = {"resume": Path(resume), "step": 1} if resume else {}
    if case.get("reference"):
        change |= {"reference": model, "reference_digest": stored_digest(model)}
    # A large epsilon: with a small one the first updates are signs of gradients, of which rounding decides some.
    optimizer = AdamWOptions(epsilon=1e-3, weight_decay=0.1)
    engine.begin(stage(model, frozen=tuple(case.get("frozen", ())), optimizer=optimizer, **change))
    arrays: dict[str, np.ndarray] = {}
    numbers: dict[str, Any] = {"before": engine.publish(0)[1]}

    def save(name: str) -> None:
        done, outcome = engine.save(folder / case["name"] / name)
        assert done.wait(60)
        assert isinstance(outcome[0], Saved), outcome[0]

    if resume:
        save("again")
    for n in (2,) if resume else (1, 2):
        groups = groups_of(case, store, n)
        kl = {"kl": "k3", "kl_coef": 0.1} if case.get("reference") else {}
        values = advantages(groups, n)
        shard, own = share(n, groups, ranks, TEXT_LAST if case.get("text_last") else PLAN)
        engine.load(shard)
        scores = engine.score(n, 1.0, (0,))
        chosen = {} if case.get("plain") else LOSS  # which tokens are chosen turns on the last bit of their scores
        held = options(groups, **chosen, **kl, temperature=1.0, banned=(0,))
        if n == 1:
            engine.gradients(n, held, [values[q] for q in own])
            arrays |= {
                f"grad.{k}": whole(p.grad).float().numpy().copy() for k, p in engine._running.optimizer.parameters
            }
        report = engine.step(n, held, [values[q] for q in own])
        numbers[f"step{n}"] = [report.loss, report.grad_norm, report.tokens]
        at = 0
        for q in own:
            length = sum(len(t.tokens) for t in groups[q].traces)
            arrays[f"old{n}.{q}"] = scores.old[at : at + length]
            at += length
        if n == 1 and case.get("text_last"):
            continue  # a snapshot would take apart what the update had left whole
        arrays |= {
            f"new{n}.{k}": t.float().numpy() for k, t in engine._running.keeper.snapshot(torch.device("cpu")).items()
        }
        if n == 1:
            save("saved")
    held_here = sum(
        p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in engine._running.policy.model.parameters()
    )
    numbers["held"] = held_here
    numbers["after"] = engine.publish(2)[1]
    np.savez(folder / f"{case['name']}-{ranks.rank}.npz", **arrays)
    (folder / f"{case['name']}-{ranks.rank}.json").write_text(json.dumps(numbers))


def main() -> None:
    """Meet the others and run all cases."""
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    ranks = Ranks()
    if world > 1:
        meet, limit = f"file://{folder}/meet", timedelta(seconds=60)
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world, timeout=limit)
        ranks = Ranks(rank, world)
    assert [x.tolist() for x in ranks.gather(np.arange(rank + 1.0))] == [list(range(r + 1)) for r in range(world)]
    for case in json.loads((folder / "cases.json").read_text()):
        run(case, ranks, folder)
    if world > 1:
        dist.destroy_process_group()


main()
