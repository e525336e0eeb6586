"""Every number of the goals that needs no GPU, as JSON lines; scripts/bench.sh says more.

python tests/python/bench.py [--only PART]... [LENGTHS]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "bin" / "uadt-train"
RECIPE = "configs/quickstart.yaml"
THREADS = "2"


def machine() -> str:
    """Name the processor and the cores in use."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        model = found.group(1)
    return f"{model}, {os.cpu_count()} cores"


def go_bench(package: str, pattern: str, times: str, **env: str) -> str:
    """Run Go benchmarks and return what they print."""
    command = ["go", "test", "-run", "^$", "-bench", pattern, "-benchtime", times, package]
    settings = os.environ | {"GOMAXPROCS": THREADS} | env
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def json_lines(text: str) -> list[dict[str, Any]]:
    """Read the JSON objects of a benchmark's output; they may follow the benchmark's name on a line."""
    return [json.loads(line[line.index("{") :]) for line in text.splitlines() if line.rstrip().endswith("}")]


def metrics(text: str) -> Iterator[tuple[str, float, str]]:
    """Yield benchmark, value and unit of every reported metric."""
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 4 or not fields[0].startswith("Benchmark"):
            continue
        for value, unit in zip(fields[2::2], fields[3::2], strict=False):
            yield fields[0], float(value), unit


Row = tuple[str, float, str, str]  # name, value, unit, goal


def write_lengths(path: Path) -> Path:
    """Draw 2,560 response lengths: lognormal, clipped to 1..2048, mean near 611."""
    draw = random.Random(611)
    lengths = [min(2048, max(1, round(draw.lognormvariate(6.175, 0.706)))) for _ in range(2560)]
    path.write_text("\n".join(map(str, lengths)) + "\n")
    return path


def controller(lengths: Path | None) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        for name, env, goal in (
            ("512 x 5 traces of 2,048 tokens", {}, "at most 0.6"),
            (
                "lengths of a file" if lengths else "lognormal lengths",
                {"CONTROLLER_LENGTHS": str(lengths or write_lengths(Path(folder) / "lengths"))},
                "a 20th of a peer's on the same lengths",
            ),
        ):
            line = json_lines(go_bench("./internal/coordinator", "Controller", "3x", **env))[-1]
            yield f"controller, {name}", line["seconds"], "s", goal
            yield f"controller, {name}: peak memory", line["peak_rss_bytes"] / 1e9, "GB", "below 0.7"
            if env and (packages := os.environ.get("VERL_PACKAGES")):
                yield from verl(env["CONTROLLER_LENGTHS"], packages, line["seconds"])


def verl(lengths: str, packages: str, ours: float) -> Iterator[Row]:
    """Run verl's driver on the same lengths, right after ours."""
    command = [sys.executable, str(ROOT / "tests" / "python" / "bench_verl.py"), lengths]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": packages}, capture_output=True, text=True, check=True
    )
    line = json_lines(done.stdout)[-1]
    for phase, seconds in line["phases"].items():
        yield f"verl's driver, the same lengths: {phase}", seconds, "s", "beside it"
    yield "verl's driver, the same lengths", line["seconds"], "s", "beside it"
    yield "verl's driver, the same lengths: peak memory", line["peak_rss_bytes"] / 1e9, "GB", "beside it"
    without = line["seconds"] - line["phases"]["reference"]
    yield "verl's driver over our controller", line["seconds"] / ours, "ratio", "at least 20"
    yield "verl's driver over our controller, no reference dispatched", without / ours, "ratio", "at least 20"


def bus() -> Iterator[Row]:
    for line in json_lines(go_bench("./internal/bus", "Groups", "1x")):
        place = f"bus, {line['transport']}"
        yield f"{place}: groups of 0.8 MB", line["groups_per_s"], "groups/s", "at least 200"
        yield f"{place}: share of loopback or append", line["share_of_bound"], "ratio", "at least 0.7"


def fleet() -> Iterator[Row]:
    goals = {"s-noticed": ("s", "at most 2"), "s-elsewhere": ("s", "at most 3")}
    for name, value, unit in metrics(go_bench("./rollout/vllm", "Failover|FleetUse", "1x")):
        if unit in goals:
            yield f"{name}: {unit}", value, *goals[unit]
        elif unit.startswith("%-of-"):
            bound = unit.removeprefix("%-of-")
            goal = {"places": "at least 97", "list-bound": "at least 90"}.get(bound, "beside it")
            yield f"{name}: share of {bound}", value, "%", goal


def native() -> Iterator[Row]:
    decode = json_lines(go_bench("./internal/qwenvl", "Decode", "3x"))[-1]["tokens_per_second"]
    yield "decode, native", decode, "tokens/s", "PyTorch's"
    for line in python_lines("bench_decode.py"):
        yield f"decode, PyTorch with {THREADS} threads", line["tokens_per_second"], "tokens/s", "beside it"
        yield "decode, time of native over PyTorch", line["tokens_per_second"] / decode, "ratio", "at most 1"
    for line in python_lines("bench_step.py"):
        if "ratio" in line:
            yield line["bench"], line["ratio"], "ratio", "at most 2, stretch 1"
        else:
            yield f"{line['bench']} {line.get('images', '')}".strip(), line["seconds"], "s", "beside it"


def python_lines(script: str) -> list[dict[str, Any]]:
    env = os.environ | {"OMP_NUM_THREADS": THREADS}
    command = [sys.executable, str(ROOT / "tests" / "python" / script)]
    return json_lines(subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout)


def program() -> Iterator[Row]:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        dry = subprocess.run([PROGRAM, "--config", RECIPE, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
        times.append(time.perf_counter() - start)
    if dry.returncode != 0:
        raise RuntimeError(dry.stderr)
    yield "dry run", statistics.median(times), "s", "below 1"
    keys = json.loads(subprocess.check_output([PROGRAM, "config", "explain", "--json"], cwd=ROOT))
    yield "configuration keys", len(keys), "keys", "at most 100"
    for recipe in sorted((ROOT / "configs").glob("*.yaml")):
        yield f"keys of {recipe.name}", recipe_keys(recipe), "keys", "at most 60"
    with tempfile.TemporaryDirectory() as runs:
        short = [f"stages.{stage}.steps=8" for stage in ("sft", "rl")]
        command = [str(PROGRAM), "--config", RECIPE, "--runs-dir", runs]
        for setting in short:
            command += ["--set", setting]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        # A child of its own, so that the peak is not that of a compiler that ran before.
        code = (
            "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
            "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        done = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"short quickstart failed (peak before {before} kB): {done.stderr}")
        yield "quickstart, first 8 steps of each stage: peak memory", int(done.stdout) * 1024 / 1e9, "GB", "below 1"


def recipe_keys(recipe: Path) -> int:
    """Count the keys that a recipe shows; the fields of list elements count once."""
    import yaml

    found: set[str] = set()

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{path}.{key}")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for item in value:
                walk(item, path)
        else:
            found.add(path)

    walk(yaml.safe_load(recipe.read_text()), "")
    return len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lengths", nargs="?", type=Path, help="response lengths for the controller, one a line")
    parts = {"program": program, "controller": controller, "bus": bus, "fleet": fleet, "native": native}
    parser.add_argument("--only", action="append", choices=parts, help="measure this part; may be given again")
    options = parser.parse_args()
    lengths = options.lengths.resolve() if options.lengths else None
    where = machine()
    failed = 0
    for part in options.only or parts:
        try:
            for name, value, unit, goal in controller(lengths) if part == "controller" else parts[part]():
                line = {"name": name, "value": round(value, 6), "unit": unit, "goal": goal, "machine": where}
                sys.stdout.write(json.dumps(line) + "\n")
                sys.stdout.flush()
        except (subprocess.CalledProcessError, RuntimeError, LookupError) as error:
            detail = getattr(error, "stderr", "") or ""
            sys.stderr.write(f"bench: {error}\n{detail[-2000:]}\n")
            failed += 1
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
