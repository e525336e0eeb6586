"""The report of scripts/test-full.sh, in Markdown: what was learnt over the seeds, and which runs have the same bits.

    python3 tests/python/full_report.py --program bin/uadt-train --seeds 5 runs/full
    python3 tests/python/full_report.py --seconds runs/full/c1-1

Only the standard library is needed. The exit status is 1 if a promise is not kept.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GOAL_POINTS = 15.0
WAYS = (("sampled", "accuracy/eval"), ("greedy", "accuracy/eval_greedy"))
# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom.
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def read(run: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def seconds(run: Path) -> float:
    """Time from the first line of metrics to the last: a whole run less its start."""
    times = [datetime.fromisoformat(line["time"][:19] + "+00:00") for line in read(run)]
    return (max(times) - min(times)).total_seconds()


def timing(name: str) -> bool:
    """Whether a metric depends on the clock or on the machine."""
    return (
        name == "time"
        or name.startswith("seconds/")
        or name.endswith("/seconds")
        or name.endswith("tokens_per_second")
        or name.endswith("_bytes")
    )


def compared(run: Path) -> list[str]:
    """Metrics less timings; sorted, because an evaluation is written while the next step is trained."""
    kept = ({k: v for k, v in line.items() if not timing(k)} for line in read(run))
    return sorted(json.dumps(line, sort_keys=True) for line in kept)


def digest(program: str, run: Path) -> str:
    """Digest of the weights that a run ended with."""
    last = max((run / "checkpoints").glob("step-*"))
    text = subprocess.check_output([program, "model", "inspect", "--json", str(last / "policy")])
    return json.loads(text)["digest"]


@dataclass(frozen=True)
class Learnt:
    """Held-out accuracies of one run, in percent."""

    base: float
    sft: float
    rl: float

    @property
    def gain(self) -> float:
        return self.rl - self.sft


def learnt(run: Path, metric: str) -> Learnt:
    rows = [line for line in read(run) if line["kind"] == "eval" and metric in line]
    base = [row for row in rows if row["stage"] == "base"]
    trained = sorted((row for row in rows if row["stage"] != "base"), key=lambda row: row["step"])
    return Learnt(*(100 * row[metric] for row in (base[0], trained[0], trained[-1])))


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and the 95 % interval of Student's t over seeds."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = T975[min(len(values) - 2, len(T975) - 1)] * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def shown(values: list[float]) -> str:
    mean, low, high = interval(values)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def machine() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return f"{found.group(1) if found else platform.machine()}, {os.cpu_count()} cores"


def commit() -> str:
    text = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return text.stdout.strip() or "unknown"


def seeds_table(out: Path, seeds: int) -> tuple[list[str], bool]:
    """Rows for every seed and way of answering, and whether the goal is reached."""
    lines, reached = [], True
    for way, metric in WAYS:
        lines += [
            f"Held-out accuracy, {way}, in percent; gains in points with the 95 % t-interval over {seeds} seeds:",
            "",
            "| rule | seed | base | after SFT | after RL | gain | seconds |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        gains: dict[str, list[float]] = {}
        ends: dict[str, list[float]] = {}
        for rule in ("c1", "none"):
            for seed in range(1, seeds + 1):
                run = out / f"{rule}-{seed}"
                one = learnt(run, metric)
                gains.setdefault(rule, []).append(one.gain)
                ends.setdefault(rule, []).append(one.rl)
                row = f"| {rule} | {seed} | {one.base:.1f} | {one.sft:.1f} | {one.rl:.1f} | {one.gain:+.1f} "
                lines.append(row + f"| {seconds(run):.0f} |")
            lines.append(f"| **{rule}** | all | | | {statistics.mean(ends[rule]):.1f} | **{shown(gains[rule])}** | |")
        paired = [a - b for a, b in zip(ends["c1"], ends["none"], strict=True)]
        lines += ["", f"c1 less none on the same seeds, after RL: {shown(paired)} points.", ""]
        if way == "sampled":
            mean, low, _ = interval(gains["c1"])
            reached = mean >= GOAL_POINTS and low > 0
            verdict = "reached" if reached else "NOT reached"
            lines += [f"Goal, {GOAL_POINTS:.0f} points with an interval above 0: {verdict}.", ""]
    return lines, reached


def same_bits(program: str, out: Path) -> tuple[list[str], bool]:
    """Compare the run that was made twice and the one that was killed with the unbroken one."""
    first = out / "c1-1"
    want, metrics = digest(program, first), compared(first)
    lives = (out / "kills").read_text().split()
    lines = ["| run | weights digest | digest | metrics less timings |", "| --- | --- | --- | --- |"]
    lines.append(f"| unbroken | `{want[:16]}` | | {len(metrics)} lines |")
    kept = True
    killed = f"killed {len(lives)} times (after {', '.join(lives)} s) and resumed"
    for name, run in (("the same seed again", out / "again-1"), (killed, out / "killed-1")):
        got, equal = digest(program, run), compared(run) == metrics
        kept = kept and got == want and equal
        lines.append(
            f"| {name} | `{got[:16]}` | {'same' if got == want else 'DIFFERS'} | {'same' if equal else 'DIFFER'} |"
        )
    return [*lines, ""], kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--program", default="bin/uadt-train")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", action="store_true", help="only print how long the run OUT took")
    options = parser.parse_args()
    if options.seconds:
        sys.stdout.write(f"{seconds(options.out):.0f}\n")
        return 0
    table, reached = seeds_table(options.out, options.seeds)
    bits, kept = same_bits(options.program, options.out)
    head = [f"Commit `{commit()}`, {machine()}, {datetime.now().date()}, `make test-full`.", ""]
    sys.stdout.write("\n".join([*head, *table, *bits]))
    return 0 if reached and kept else 1


if __name__ == "__main__":
    sys.exit(main())
