"""What a run leaves behind opens in the tools that people use: ledger, metrics, TensorBoard, rollouts, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas
import polars
import pytest
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine_server import program
from tiny_run import policies, train

# Every column that docs/cli.md names; a user's own reward parts would add reward/NAME.
COLUMNS = set(
    """run incarnation stage step epoch job question trace type modality level split gold answer answer_reason finish
    missing correct reward reward/format reward/answer group_mean group_std zero_variance entropy estimator
    temperature tau sigma u omega lambda gain gamma advantage advantage_shaped advantage_shaped_min
    advantage_shaped_max rule length prompt_tokens logprob_sum policy_sent policy_received policy_scored seed server
    images text""".split()
)

# Every name of docs/metrics.md that a step with KL on writes.
STEP_METRICS = {
    "reward": "mean std format answer missing",
    "accuracy": "train",
    "rollout": """tokens length_mean length_max truncated_share seconds tokens_per_second staleness_mean dropped""",
    "entropy": "mean min max right wrong within_std between_std estimator",
    "uadt": """tau sigma tau_drift common_shift omega_std floor_active omega_mean omega_saturated lambda gain mass_moved
        sign_flips zero_variance_groups effective_group_size corr_length_within corr_length_between corr_correct_within
        corr_correct_between""",
    "advantage": "raw_pos raw_neg shaped_pos shaped_neg",
    "loss": "total policy kl",
    "kl": "behaviour reference",
    "clip": "low high dual",
    "rollout_gap": "w_mean w_max truncated kl",
    "length": "right wrong",
    "answers": "distinct",
    "grad": "norm",
    "trainer": "seconds tokens_per_second peak_bytes",
    "seconds": "step rollout reward score shape pack train publish checkpoint",
    "memory": "rss_bytes",
}
TEXTS = {"kind", "stage", "time", "entropy/estimator"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    return train(program(folder), folder)


@pytest.fixture(scope="module")
def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_ledger_opens_in_pandas_duckdb_and_polars(run: Path, lines: list[dict[str, Any]]) -> None:
    pattern = str(run / "ledger" / "step-*.parquet")
    files = sorted((run / "ledger").glob("step-*.parquet"))
    ours = polars.read_parquet(pattern)
    theirs = pandas.concat([pandas.read_parquet(file) for file in files], ignore_index=True)
    rows = duckdb.sql(f"SELECT * FROM '{pattern}'")
    assert set(ours.columns) >= COLUMNS, sorted(COLUMNS - set(ours.columns))
    assert set(theirs.columns) == set(ours.columns) == set(rows.columns)
    assert len(ours) == len(theirs) == rows.shape[0] == 3 * 16 * 4
    for column in ("reward", "entropy", "advantage_shaped", "tau", "omega"):
        np.testing.assert_array_equal(ours[column].to_numpy(), theirs[column].to_numpy())
    trained = [line for line in lines if line["kind"] == "step" and line["stage"] == "rl"]
    accuracy = duckdb.sql(f"SELECT step, avg(correct::INT) FROM '{pattern}' GROUP BY step ORDER BY step").fetchall()
    assert [line["accuracy/train"] for line in trained] == pytest.approx([share for _, share in accuracy])
    assert ours["advantage"].abs().sum() > 0, "no group had variance: the columns say nothing"
    digests = ours["images"].explode().to_list()
    assert all(len(digest) == 64 for digest in digests)


def test_shaped_advantages_follow_from_their_columns(run: Path) -> None:
    """What every rule keeps: zeros, signs and the range of omega."""
    ledger = polars.read_parquet(str(run / "ledger" / "step-*.parquet"))
    raw, shaped = ledger["advantage"].to_numpy(), ledger["advantage_shaped"].to_numpy()
    assert (shaped[raw == 0] == 0).all()
    assert (np.sign(shaped[raw != 0]) == np.sign(raw[raw != 0])).all()
    assert (shaped != raw).any()
    assert (ledger["omega"].abs() <= 1).all()


def test_metrics_have_the_documented_names(lines: list[dict[str, Any]]) -> None:
    steps = [line for line in lines if line["kind"] == "step" and line["stage"] == "rl"]
    assert len(steps) == 3
    seen = set().union(*steps)
    wanted = {f"{group}/{name}" for group, names in STEP_METRICS.items() for name in names.split()}
    wanted |= {"step", "stage", "policy_version", "time", "lr"}
    assert wanted <= seen, sorted(wanted - seen)
    evaluations = set().union(*(line for line in lines if line["kind"] == "eval"))
    assert {"accuracy/eval", "accuracy/eval_greedy", "accuracy/eval_passk"} <= evaluations


def test_tensorboard_reads_the_same_numbers(run: Path, lines: list[dict[str, Any]]) -> None:
    board = EventAccumulator(str(run / "tb"), size_guidance={"scalars": 0})
    board.Reload()
    scalars = set(board.Tags()["scalars"])
    steps = [line for line in lines if line["kind"] == "step" and line["stage"] == "rl"]
    names = {name for line in steps for name in line if "/" in name and name not in TEXTS}
    assert names - scalars == set()
    for name in ("reward/mean", "uadt/tau", "loss/total", "entropy/mean"):
        values = {event.step: event.value for event in board.Scalars(name)}
        for line in steps:
            assert values[line["step"]] == pytest.approx(line[name], rel=1e-6)


def test_rollouts_open_in_safetensors(run: Path) -> None:
    files = sorted((run / "rollouts").glob("step-*.safetensors"))
    assert len(files) == 3
    ledger = polars.read_parquet(str(run / "ledger" / "step-*.parquet"))
    tensors = [load_file(file) for file in files]
    lengths = np.concatenate([np.diff(t["offsets"]) for t in tensors])
    assert sorted(lengths.tolist()) == sorted(ledger["length"].to_list())
    for t in tensors:
        assert t["tokens"].shape == t["logprobs"].shape == (t["offsets"][-1],)
        assert (t["logprobs"] <= 0).all()
        sums = np.add.reduceat(t["logprobs"], t["offsets"][:-1])
        known = ledger["logprob_sum"].to_numpy()
        assert all(np.abs(known - s).min() < 1e-3 for s in sums)


def test_every_checkpoint_is_a_hugging_face_directory(run: Path) -> None:
    folders = policies(run)
    assert folders
    for folder in folders:
        json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
        assert all(np.isfinite(tensor).all() for tensor in weights.values())
        manifest = json.loads((folder.parent / "manifest.json").read_text())
        assert manifest
