"""Writes shape_vectors.json: batches shaped by an independent route.

Plain Python, written from the definitions (statistics, itertools and a dense
table of traces) rather than from the Go code: the Go package must agree with
it to 1e-9. Run as ``python make_vectors.py > shape_vectors.json``; the output
is the same on every run.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics
import sys
from typing import Any

Trace = dict[str, Any]

BASELINES = ("grpo", "dr_grpo", "rloo")
RULES = ("none", "c1", "c2", "c3", "c4")
NORMS = ("diff", "rel", "z")


def mean(values: list[float]) -> float:
    """Exact mean, rounded once."""
    return float(statistics.fmean(values))


def draw_batch(rng: random.Random) -> list[list[Trace]]:
    """One batch: groups of traces with every kind of irregularity."""
    batch = []
    for _ in range(rng.randint(1, 5)):
        group = []
        flat = rng.random() < 0.2
        for _ in range(rng.randint(1, 7)):
            length = rng.choice([0, *range(1, 9), *range(1, 9)])
            reward = 0.5 if flat else rng.choice([0.0, 0.1, 0.5, 1.0, 1.1])
            group.append(
                {
                    "reward": reward,
                    "penalty": rng.choice([0.0, 0.0, round(rng.uniform(0, 0.2), 3)]),
                    "missing": rng.random() < 0.1,
                    "correct": reward >= 1,
                    "truncated": rng.random() < 0.15,
                    "aborted": rng.random() < 0.05,
                    "length": length,
                    # multiples of 1/64: the same in float32 and float64
                    "entropies": [rng.randint(0, 200) / 64 for _ in range(length)],
                    "span": [rng.random() < 0.8 for _ in range(length)],
                }
            )
        batch.append(group)
    return batch


def alive(trace: Trace) -> bool:
    """Whether the trace takes part at all."""
    return not trace["aborted"] and trace["length"] > 0


def own_entropy(trace: Trace) -> float | None:
    """Mean entropy over the span, None where there is none."""
    chosen = [h for h, inside in zip(trace["entropies"], trace["span"], strict=True) if inside]
    return mean(chosen) if alive(trace) and chosen else None


def advantages(group: list[Trace], options: dict[str, Any]) -> tuple[list[float], bool]:
    """Return A of each trace, and whether the group is informative."""
    scored = [t for t in group if alive(t) and not t["missing"]]
    if len(scored) < 2 or statistics.stdev(t["reward"] for t in scored) < options["min_std"]:
        return [0.0] * len(group), False
    net = [t["reward"] - t["penalty"] for t in scored]
    out = []
    for trace in group:
        if not any(trace is t for t in scored):
            out.append(0.0)
            continue
        value = trace["reward"] - trace["penalty"]
        if options["advantage"] == "rloo":
            others = [x for x, t in zip(net, scored, strict=True) if t is not trace]
            out.append(value - mean(others))
        elif options["advantage"] == "dr_grpo":
            out.append(value - mean(net))
        else:
            out.append((value - mean(net)) / (statistics.stdev(net) + options["eps"]))
    return out, True


def rule(name: str, a: float, omega: float, strength: float, kappa: float) -> float:
    """Shaped advantage of one trace."""
    sign = (a > 0) - (a < 0)
    if name == "c1":
        return a * (1 + sign * strength * omega)
    if name == "c4":
        return a * (1 - sign * strength * omega)
    if name == "c2":
        return a + strength * omega * a
    if name == "c3":
        bound = abs(a) / kappa if kappa else math.inf
        return a + sorted((-bound, strength * omega, bound))[1]
    return a


def distance(h: float, tau: float, sigma: float, options: dict[str, Any]) -> float:
    """Distance of H from the threshold, in the units of the norm."""
    if options["norm"] == "diff":
        return h - tau
    base = tau if options["norm"] == "rel" else sigma
    return (h - tau) / max(base, options["floor"])


def shape(batch: list[list[Trace]], state: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Shapes one batch; moves state on."""
    flat = []  # one row a trace: group, trace, H, counted, A, trained
    for q, group in enumerate(batch):
        a, informative = advantages(group, options)
        own = [own_entropy(t) for t in group]
        counted = [
            h is not None and (options["truncated"] == "include" or not t["truncated"])
            for h, t in zip(own, group, strict=True)
        ]
        level = list(own)
        if options["level"] == "group" and any(counted):
            shared = mean([h for h, c in zip(own, counted, strict=True) if c])
            level = [shared if c else h for h, c in zip(own, counted, strict=True)]
        for i, trace in enumerate(group):
            flat.append(
                {
                    "q": q,
                    "h": own[i],
                    "level": level[i],
                    "counted": counted[i],
                    "a": a[i],
                    "trained": informative and alive(trace) and not trace["missing"],
                }
            )
    counted_levels = [row["level"] for row in flat if row["counted"]]
    tau, sigma = state["tau"], state["sigma"]
    if counted_levels:
        mu, sd = mean(counted_levels), statistics.pstdev(counted_levels)
        if tau is None:
            state["tau"], state["sigma"] = tau, sigma = mu, sd
        g = options["gamma"]
        state["tau"], state["sigma"] = g * tau + (1 - g) * mu, g * sigma + (1 - g) * sd
        if options["update"] == "before":
            tau, sigma = state["tau"], state["sigma"]
    for row in flat:
        row["omega"] = (
            math.tanh(options["gain"] * distance(row["level"], tau, sigma, options)) if row["counted"] else 0.0
        )
    if options["placebo"] == "mean":
        for _, rows in itertools.groupby(flat, key=lambda row: row["q"]):
            members = [row for row in rows if row["counted"]]
            shared = mean([row["omega"] for row in members]) if members else 0.0
            for row in members:
                row["omega"] = shared
    for row in flat:
        row["shaped"] = (
            rule(options["rule"], row["a"], row["omega"], options["lambda"], options["kappa"])
            if row["trained"]
            else 0.0
        )
    trained = [row for row in flat if row["trained"]]
    if options["recenter"] and trained:
        shift = mean([row["shaped"] for row in trained])
        for row in trained:
            row["shaped"] -= shift
    after = math.fsum(abs(row["shaped"]) for row in flat)
    if options["rescale"] and after > 0:
        ratio = math.fsum(abs(row["a"]) for row in flat) / after
        for row in flat:
            row["shaped"] *= ratio
    metrics = measure(flat, trained)
    groups = [[row for row in flat if row["q"] == q] for q in range(len(batch))]
    return {
        "a": [[row["a"] for row in g] for g in groups],
        "omega": [[row["omega"] for row in g] for g in groups],
        "shaped": [[row["shaped"] for row in g] for g in groups],
        "tau": tau or 0.0,
        "next_tau": state["tau"] or 0.0,
        "next_sigma": state["sigma"] or 0.0,
        "metrics": metrics,
    }


def measure(flat: list[dict[str, Any]], trained: list[dict[str, Any]]) -> dict[str, float]:
    """Metrics of a batch, by their definitions."""
    out: dict[str, float] = {}
    mass = math.fsum(abs(row["a"]) for row in flat)
    if mass > 0:
        out["uadt/mass_moved"] = math.fsum(abs(row["shaped"] - row["a"]) for row in flat) / mass
    omegas = [row["omega"] for row in flat if row["counted"]]
    if omegas:
        out["uadt/omega_mean"], out["uadt/omega_std"] = mean(omegas), statistics.pstdev(omegas)
        hs = [row["h"] for row in flat if row["counted"]]
        out["entropy/mean"], out["entropy/min"], out["entropy/max"] = mean(hs), min(hs), max(hs)
    if trained:
        out["uadt/common_shift"] = mean([row["shaped"] for row in trained]) - mean([row["a"] for row in trained])
        out["advantage/raw_pos"] = mean([max(row["a"], 0.0) for row in trained])
        out["advantage/shaped_neg"] = mean([min(row["shaped"], 0.0) for row in trained])
    return out


def draw_options(rng: random.Random, index: int) -> dict[str, Any]:
    """One setting of every option."""
    return {
        "rule": RULES[index % len(RULES)],
        "norm": NORMS[index // len(RULES) % len(NORMS)],
        "advantage": rng.choice(BASELINES),
        "level": rng.choice(["trace", "trace", "group"]),
        "truncated": rng.choice(["include", "exclude"]),
        "placebo": rng.choice(["off", "off", "mean"]),
        "update": rng.choice(["after", "after", "before"]),
        "recenter": rng.random() < 0.4,
        "rescale": rng.random() < 0.3,
        "gamma": rng.choice([0.0, 0.8, 0.99, 1.0]),
        "lambda": round(rng.uniform(0, 1), 3),
        "gain": round(rng.uniform(0, 3), 3),
        "kappa": rng.choice([0.0, 1.5, 2.0]),
        "floor": rng.choice([0.01, 0.5]),
        "eps": rng.choice([1e-6, 1e-4]),
        "min_std": 1e-3,
    }


def main() -> None:
    """Write the vectors to standard output."""
    rng = random.Random(20)
    runs = []
    for index in range(45):
        options = draw_options(rng, index)
        state: dict[str, Any] = {"tau": None, "sigma": None}
        steps = []
        for _ in range(3):
            batch = draw_batch(rng)
            steps.append({"batch": batch, "want": shape(batch, state, options)})
        runs.append({"options": options, "steps": steps})
    json.dump(runs, sys.stdout, separators=(",", ":"))
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
