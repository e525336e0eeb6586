"""Two ranks over gloo, each with the whole model or with half of it, make the update of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import conftest
import micro_internvl
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

PROGRAM = Path(__file__).resolve().parent / "rank_program.py"
WORLDS = {"one": (1, "none"), "whole": (2, "none"), "cut": (2, "full")}
# What is frozen decides which layers FSDP2 reduces gradients of, and which have a backward pass at all.
CASES: dict[str, dict[str, Any]] = {
    "qwen": {"family": "qwen"},
    "qwen-untied": {"family": "qwen", "model": "untied", "checkpointing": True},
    "qwen-align": {"family": "qwen", "frozen": ["language"], "checkpointing": True},
    "qwen-align-text": {"family": "qwen", "frozen": ["language"], "text_last": True},
    "qwen-projector": {"family": "qwen", "frozen": ["vision", "language"]},
    "qwen-language": {"family": "qwen", "frozen": ["vision", "projector"], "reference": True, "checkpointing": True},
    "qwen-bfloat16": {"family": "qwen", "dtype": "bfloat16", "frozen": ["vision"], "plain": True},
    "intern": {"family": "intern", "checkpointing": True, "reference": True},
    "intern-align": {"family": "intern", "frozen": ["language"], "checkpointing": True},
    "intern-bfloat16": {"family": "intern", "dtype": "bfloat16", "checkpointing": True, "plain": True},
    "intern-language": {"family": "intern", "frozen": ["vision", "projector"]},
}
ALIKE = [n for n, c in CASES.items() if "dtype" not in c]
RESUMED = ("qwen", "qwen-align", "qwen-bfloat16", "intern")

Results = Path  # WORLD/CASE-RANK.npz and .json, WORLD/CASE/saved/


def run(folder: Path, sets: dict[str, tuple[str, list[dict[str, Any]]]]) -> None:
    """Run sets of ranks side by side: name -> (world, cases)."""
    running = []
    for name, (kind, cases) in sets.items():
        world, sharding = WORLDS[kind]
        (folder / name).mkdir()
        (folder / name / "cases.json").write_text(json.dumps([c | {"sharding": sharding} for c in cases]))
        for rank in range(world):
            command = [sys.executable, str(PROGRAM), str(rank), str(world), str(folder / name)]
            environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
            running.append((name, subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)))
    try:
        for name, process in running:
            _, errors = process.communicate(timeout=170)
            assert process.returncode == 0, f"{name}: {errors[-3000:]}"
    finally:
        for _, process in running:
            process.kill()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("ranks")
    models = {
        "qwen": conftest.write_checkpoint(folder / "models" / "qwen"),
        "untied": conftest.write_checkpoint(folder / "models" / "untied", tie=False),
        "intern": micro_internvl.write_checkpoint(folder / "models" / "intern"),
    }
    cases = [{"name": n} | c | {"model": str(models[c.get("model", c["family"])])} for n, c in CASES.items()]
    run(folder, {"one": ("one", cases), "whole": ("whole", cases[:1]), "cut": ("cut", cases)})
    again = [c for c in cases if c["name"] in RESUMED]
    run(
        folder,
        {
            f"{kind}-resumed": (kind, [c | {"resume": str(folder / other / c["name"] / "saved")} for c in again])
            for kind, other in (("one", "cut"), ("cut", "one"))
        },
    )
    return folder


def arrays(results: Results, name: str) -> list[dict[str, np.ndarray]]:
    return [dict(np.load(p)) for p in sorted(results.glob(f"{name}-?.npz"))]


def numbers(results: Results, name: str) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted(results.glob(f"{name}-?.json"))]


@pytest.mark.parametrize(("kind", "case"), [("whole", "qwen"), *(("cut", n) for n in ALIKE)])
def test_two_ranks_make_the_update_of_one(results: Results, kind: str, case: str) -> None:
    (one,), ranks = arrays(results, f"one/{case}"), arrays(results, f"{kind}/{case}")
    assert len(ranks) == 2
    gradients = [n for n in one if n.startswith("grad.")]
    for n in gradients:
        np.testing.assert_array_equal(ranks[0][n], ranks[1][n])
        # Sums of float32 in another order: 1e-5 of a tensor's norm, and nothing where it is 0 but for rounding.
        assert np.linalg.norm(ranks[0][n] - one[n]) <= 1e-5 * np.linalg.norm(one[n]) + 1e-6, n
    for n in (n for n in one if n.startswith("old")):
        (scored,) = (r[n] for r in ranks if n in r)
        np.testing.assert_allclose(scored, one[n], atol=2e-5)
    updated = [n for n in one if n.startswith("new")]
    assert gradients and updated
    for n in updated:
        np.testing.assert_allclose(ranks[0][n], one[n], rtol=0, atol=1e-6)
    (alone,), reports = numbers(results, f"one/{case}"), numbers(results, f"{kind}/{case}")
    assert reports[0]["before"] == alone["before"]
    for step in ("step1", "step2"):
        loss, norm, tokens = zip(*(r[step] for r in reports), strict=True)
        assert sum(loss) == pytest.approx(alone[step][0], rel=1e-5, abs=1e-6)
        assert norm[0] == norm[1] == pytest.approx(alone[step][1], rel=1e-5)
        assert sum(tokens) == alone[step][2]


@pytest.mark.parametrize("case", [n for n in CASES if n not in ALIKE])
def test_gradients_of_bfloat16_agree_up_to_rounding(results: Results, case: str) -> None:
    (one,), ranks = arrays(results, f"one/{case}"), arrays(results, f"cut/{case}")
    alone, cut = (np.concatenate([a[n].ravel() for n in one if n.startswith("grad.")]) for a in (one, ranks[0]))
    assert np.linalg.norm(cut - alone) <= 0.05 * np.linalg.norm(alone)


@pytest.mark.parametrize("case", list(CASES))
def test_each_rank_holds_its_part(results: Results, case: str) -> None:
    (alone,), reports = numbers(results, f"one/{case}"), numbers(results, f"cut/{case}")
    held = [r["held"] for r in reports]
    assert sum(held) == alone["held"]
    assert max(held) < 0.51 * alone["held"]  # rows of tensors with an odd number of them


@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.parametrize(("kind", "other"), [("one", "cut"), ("cut", "one")])
def test_a_checkpoint_is_resumed_by_another_number_of_ranks(results: Results, case: str, kind: str, other: str) -> None:
    saved, again = results / other / case / "saved", results / f"{kind}-resumed" / case / "again"
    for file in ("optimizer.safetensors", "policy/model.safetensors"):
        before, after = load_file(saved / file), load_file(again / file)
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert torch.equal(tensor, after[name]), name
    if CASES[case].get("dtype"):
        return
    went_on, resumed = arrays(results, f"{other}/{case}")[0], arrays(results, f"{kind}-resumed/{case}")[0]
    updated = [n for n in resumed if n.startswith("new2.")]
    assert updated
    for n in updated:
        np.testing.assert_allclose(resumed[n], went_on[n], rtol=0, atol=1e-6)


def test_master_weights_are_finer_than_what_is_published(results: Results) -> None:
    for kind in ("one", "cut"):
        saved = results / kind / "qwen-bfloat16" / "saved"
        state, policy = load_file(saved / "optimizer.safetensors"), load_file(saved / "policy" / "model.safetensors")
        name = "language_model.layers.0.mlp.up_proj.weight"
        master, published = state[f"master.model.{name}"], policy["model.layers.0.mlp.up_proj.weight"]
        assert (master.dtype, published.dtype) == (torch.float32, torch.bfloat16)
        assert torch.equal(master.to(torch.bfloat16), published)
        assert not torch.equal(master, published.float())
