"""Two ranks over gloo make the update of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
from datetime import timedelta
from pathlib import Path
import numpy as np
import torch
import torch.distributed as dist
sys.path[:0] = [{package!r}, {tests!r}]
from conftest import Store, advantages, batch, options, stage
from uadt_trainer.engine import Engine, EngineOptions
from uadt_trainer.ranks import Ranks
from uadt_trainer.types import Part, Shard

rank, world = int(sys.argv[1]), int(sys.argv[2])
model, work, out = map(Path, sys.argv[3:])
torch.set_num_threads(1)
ranks = Ranks()
if world > 1:
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{{work}}/meet", rank=rank, world_size=world, timeout=limit)
    ranks = Ranks(rank, world)
assert [x.tolist() for x in ranks.gather(np.arange(rank + 1.0))] == [list(range(r + 1)) for r in range(world)]
store = Store()
engine = Engine(EngineOptions(torch.device("cpu"), torch.float32, work, store.fetch), ranks)
engine.begin(stage(model))
for n in (1, 2):
    groups = batch(store, n)
    o = options(groups, entropy_quantile=0.5, covariance_kind="clip", covariance_share=0.1, grad_clip=0.5)
    values = advantages(groups, n)
    # Rank 0 has the first group, rank 1 the rest.
    own = [q for q in range(3) if world == 1 or (q > 0) == (rank == 1)]
    parts = tuple(Part(0, i, 0, len(groups[q].traces)) for i, q in enumerate(own))
    engine.load(Shard(n, tuple(groups[q] for q in own), parts, 1))
    engine.score(n, 1.0, ())
    report = engine.step(n, o, [values[q] for q in own])
weights = torch.cat([p.detach().flatten() for _, p in engine._running.optimizer.parameters])
np.save(out / f"{{world}}-{{rank}}.npy", weights.numpy())
(out / f"{{world}}-{{rank}}.json").write_text(json.dumps([report.loss, report.grad_norm, report.tokens]))
"""


def test_two_ranks_make_the_update_of_one(tmp_path: Path, checkpoint: Path) -> None:
    import numpy as np

    tests = Path(__file__).resolve().parent
    script = tmp_path / "rank.py"
    script.write_text(SCRIPT.format(package=str(tests.parent), tests=str(tests)))
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    running = []
    for world in (1, 2):
        work = tmp_path / f"work{world}"
        work.mkdir()
        for rank in range(world):
            command = [sys.executable, str(script), str(rank), str(world), str(checkpoint), str(work), str(tmp_path)]
            running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors[-3000:]
    one, first, second = (np.load(tmp_path / f"{n}.npy") for n in ("1-0", "2-0", "2-1"))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, one, atol=2e-4)
    assert np.median(np.abs(first - one)) < 1e-7
    reports = {n: json.loads((tmp_path / f"{n}.json").read_text()) for n in ("1-0", "2-0", "2-1")}
    assert reports["2-0"][0] + reports["2-1"][0] == pytest.approx(reports["1-0"][0], rel=1e-4, abs=1e-6)
    assert reports["2-0"][1] == reports["2-1"][1] == pytest.approx(reports["1-0"][1], rel=1e-4)
    assert reports["2-0"][2] + reports["2-1"][2] == reports["1-0"][2]
