"""What verl's driver does for one step, on the lengths that our controller is measured on; scripts/bench.sh says more.

Nothing of verl's is copied: its trainer's own methods run on its own Ray worker group, whose ranks answer at once.
What its workers compute (models, rewards, padding) is left out, what its driver does is all here: balancing, a
dispatch each for old log-probabilities, reference and update, with their collection, and the advantages.

python tests/python/bench_verl.py LENGTHS [--traces 5] [--ranks 8] [--repeat 3]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import ray
import torch
from tensordict import TensorDict
from verl import DataProto
from verl.single_controller.base.decorator import make_nd_compute_dataproto_dispatch_fn, register
from verl.single_controller.base.worker import Worker
from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
from verl.trainer.ppo.core_algos import AdvantageEstimator
from verl.trainer.ppo.ray_trainer import RayPPOTrainer, compute_advantage
from verl.utils import tensordict_utils as tu

PROMPT = 512  # tokens, as in the benchmark of our controller


class Rank(Worker):
    """A rank that takes its part of the batch and answers with numbers of the right shape."""

    def __init__(self) -> None:
        super().__init__()
        self._register_dispatch_collect_info("actor", dp_rank=self.rank, is_collect=True)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def compute_log_prob(self, data: TensorDict) -> TensorDict:
        ids = data["input_ids"]
        values = torch.nested.nested_tensor_from_jagged(torch.zeros(ids.values().shape[0]), offsets=ids.offsets())
        tensors = {"log_probs": values}
        if tu.get(data, "calculate_entropy"):
            tensors["entropy"] = values.clone()
        return tu.get_tensordict(tensors, {"metrics": {"mfu": 0.0}})

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def update_actor(self, data: TensorDict) -> TensorDict:
        return tu.get_tensordict({}, {"metrics": {"mfu": [0.0]}})


def trainer(group: RayWorkerGroup, traces: int, questions: int) -> SimpleNamespace:
    """Return what the methods of verl's trainer read of it."""
    actor = SimpleNamespace(
        get=lambda _, default=None: default,
        calculate_entropy=False,
        entropy_coeff=0.0,
        ppo_mini_batch_size=questions,
        ppo_epochs=1,
        data_loader_seed=1,
        shuffle=False,
    )
    rollout = SimpleNamespace(multi_turn=SimpleNamespace(enable=False), temperature=1.0, n=traces)
    config = SimpleNamespace(actor_rollout_ref=SimpleNamespace(actor=actor, rollout=rollout), get=lambda *_: None)
    made = SimpleNamespace(actor_rollout_wg=group, ref_in_actor=True, config=config, use_prefix_grouper=False)
    made._get_dp_size = lambda workers, role: RayPPOTrainer._get_dp_size(made, workers, role)
    return made


def sampled(lengths: list[int], traces: int) -> DataProto:
    """Return a batch as it stands after generation: left-padded prompts, right-padded responses."""
    count, longest = len(lengths), max(lengths)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 150_000, (count, PROMPT + longest), generator=generator)
    response_mask = (torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]).long()
    attention_mask = torch.cat([torch.ones(count, PROMPT, dtype=torch.int64), response_mask], dim=1)
    scores = torch.zeros(count, longest)
    scores[torch.arange(count), torch.tensor(lengths) - 1] = torch.randint(0, 2, (count,), generator=generator).float()
    tensors = {
        "prompts": ids[:, :PROMPT].clone(),
        "responses": ids[:, PROMPT:].clone(),
        "input_ids": ids,
        "attention_mask": attention_mask,
        "position_ids": attention_mask.cumsum(1) - 1,
        "response_mask": response_mask,
        "rollout_log_probs": -torch.rand(count, longest, generator=generator),
        "token_level_scores": scores,
        "token_level_rewards": scores,
    }
    groups = np.array([str(i // traces) for i in range(count)], dtype=object)
    return DataProto.from_dict(tensors, non_tensors={"uid": groups}, meta_info={"temperature": 1.0})


def step(driver: SimpleNamespace, batch: DataProto) -> dict[str, float]:
    """Do one step's driver work; seconds by phase."""
    seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - started

    with timed("balance"):
        RayPPOTrainer._balance_batch(driver, batch, metrics={})
    with timed("old"):
        old, _ = RayPPOTrainer._compute_old_log_prob(driver, batch)
        old.batch.pop("entropys")
        batch = batch.union(old)
    with timed("reference"):
        batch = batch.union(RayPPOTrainer._compute_ref_log_prob(driver, batch))
    with timed("advantage"):
        batch = compute_advantage(batch, AdvantageEstimator.GRPO)
    with timed("update"):
        RayPPOTrainer._update_actor(driver, batch)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lengths", type=Path, help="response lengths, one a line, a group after the other")
    parser.add_argument("--traces", type=int, default=5, help="traces of a group")
    parser.add_argument("--ranks", type=int, default=8, help="ranks that a batch is dispatched to")
    parser.add_argument("--repeat", type=int, default=3, help="steps; the fastest counts, as for ours")
    options = parser.parse_args()
    lengths = [int(line) for line in options.lengths.read_text().split()]
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    # Ranks are processes that share this machine's cores, as ours share them with what they measure.
    ray.init(num_cpus=16 * options.ranks, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    pool = RayResourcePool([options.ranks], use_gpu=False)
    group = RayWorkerGroup(pool, RayClassWithInitArgs(ray.remote(Rank)), device_name="cpu")
    driver = trainer(group, options.traces, len(lengths) // options.traces)
    driver._get_dp_size(group, "actor")  # returns when every rank has started
    steps = [step(driver, sampled(lengths, options.traces)) for _ in range(options.repeat)]
    best = min(steps, key=lambda s: sum(s.values()))
    line = {
        "bench": "verl driver",
        "seconds": sum(best.values()),
        "phases": best,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    sys.stdout.write(json.dumps(line) + "\n")
    ray.shutdown()


if __name__ == "__main__":
    main()
