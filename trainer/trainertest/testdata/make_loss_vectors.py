"""Writes loss_vectors.json: losses, derivatives and statistics by autograd.

The losses are written here from their definitions, in float64, and PyTorch's
autograd differentiates them: no derivative is written by hand. The Go package
``trainer`` must agree to 1e-12, and the PyTorch trainer reads the same file.
Run as ``python make_loss_vectors.py > loss_vectors.json``; the output is the
same on every run of one PyTorch version.

Axes: a case is one update of R traces; every per-token list of a trace is [T].
A token outside the mask has the placeholder -1 for every value.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import torch

torch.set_default_dtype(torch.float64)

Trace = dict[str, Any]


def stop(x: torch.Tensor) -> torch.Tensor:
    """Stop-gradient."""
    return x.detach()


def policy_terms(trace: Trace, lp: torch.Tensor, weights: torch.Tensor, o: dict[str, Any]) -> torch.Tensor:
    """Token losses [T] of the masked-in tokens, without selection."""
    if o["loss"] == "nll":
        return -lp
    old = torch.tensor(trace["old"])
    advantage = torch.tensor(trace["advantages"]).expand(len(lp)) * weights
    low, high = 1 - o["clip_low"], 1 + o["clip_high"]
    if o["loss"] == "gspo":
        inside = torch.tensor(trace["mask"], dtype=torch.bool)
        mean = (lp - old)[inside].mean() if inside.any() else torch.zeros(())
        ratio = torch.exp(torch.clamp(lp - stop(lp) + stop(mean), max=10))
    else:
        ratio = torch.exp(torch.clamp(lp - old, -20, 20))
    if o["loss"] == "cispo":
        return -stop(torch.clamp(ratio, low, high)) * advantage * lp
    loss = torch.maximum(-advantage * ratio, -advantage * torch.clamp(ratio, low, high))
    if o["loss"] == "ppo" and o["dual_clip"] > 0:
        loss = torch.where(advantage < 0, torch.minimum(loss, -advantage * o["dual_clip"]), loss)
    return loss


def correction(trace: Trace, o: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors [T] of the advantage, and the raw w [T]."""
    ones = torch.ones(len(trace["lp"]))
    if trace["rollout"] is None or o["loss"] == "nll":
        return ones, ones
    inside = torch.tensor(trace["mask"], dtype=torch.bool)
    gap = torch.tensor(trace["old"]) - torch.tensor(trace["rollout"])
    if o["correction_level"] == "sequence":
        gap = gap[inside].sum().expand(len(gap))
    w = torch.exp(torch.clamp(gap, -20, 20))
    if not o["correction_level"]:
        return ones, w
    if o["correction_mode"] == "mask":
        return torch.where((w >= o["correction_lower"]) & (w <= o["correction_upper"]), w, torch.zeros_like(w)), w
    return torch.clamp(w, max=o["correction_upper"]), w


def kl_terms(trace: Trace, lp: torch.Tensor, o: dict[str, Any]) -> torch.Tensor:
    """Estimates of the distance to the reference, [T]."""
    d = torch.tensor(trace["reference"]) - lp
    if o["kl_clamp"]:
        d = torch.clamp(d, -20, 20)
    estimate = {"k1": -d, "k2": d * d / 2, "k3": torch.expm1(d) - d}[o["kl"]]
    return torch.clamp(estimate, -10, 10) if o["kl_clamp"] else estimate


def aggregate(per_trace: list[torch.Tensor], o: dict[str, Any]) -> torch.Tensor:
    """One number from masked-in token values, trace by trace."""
    rows = [x for x in per_trace if len(x) > 0]
    how = "seq_mean_token_mean" if o["loss"] == "gspo" else o["aggregation"]
    if how == "token_mean":
        return torch.cat(rows).mean()
    sums = torch.stack([x.sum() for x in rows])
    if how == "seq_mean_token_sum":
        return sums.mean()
    if how == "seq_mean_token_sum_norm":
        return (sums / o["max_tokens"]).mean()
    return torch.stack([x.mean() for x in rows]).mean()


def solve(case: dict[str, Any]) -> dict[str, Any]:
    """Everything expected of one case."""
    o, traces = case["options"], case["traces"]
    lps = [torch.tensor(t["lp"], requires_grad=True) for t in traces]
    entropies = [torch.tensor(t["entropy"], requires_grad=True) for t in traces]
    policy, kl, entropy = [], [], []
    out: dict[str, Any] = {"gap_w": 0.0, "gap_max": 0.0, "gap_outside": 0, "gap_difference": 0.0}
    for trace, lp, h in zip(traces, lps, entropies, strict=True):
        inside = torch.tensor(trace["mask"], dtype=torch.bool)
        factors, w = correction(trace, o)
        terms = policy_terms(trace, lp, factors, o)
        if trace["kept"] is not None:
            terms = terms * torch.tensor(trace["kept"], dtype=torch.float64)
        if trace["covariance"] is not None:
            hit = torch.tensor(trace["covariance"], dtype=torch.bool)
            if o["covariance_kind"] == "clip":
                terms = torch.where(hit, stop(terms), terms)
            else:
                terms = terms + o["covariance_coef"] * hit * (lp - torch.tensor(trace["old"])).abs()
        policy.append(terms[inside])
        entropy.append(h[inside])
        if o["kl"]:
            kl.append(kl_terms(trace, lp, o)[inside])
        if trace["rollout"] is not None and o["loss"] != "nll" and inside.any():
            w = w[inside]
            upper, lower = o["correction_upper"], o["correction_lower"]
            beyond = (w > upper) | (w < lower) if o["correction_mode"] == "mask" else w > upper
            out["gap_w"] += w.sum().item()
            out["gap_max"] = max(out["gap_max"], w.max().item())
            out["gap_outside"] += int(beyond.sum())
            out["gap_difference"] += (torch.tensor(trace["rollout"]) - torch.tensor(trace["old"]))[inside].sum().item()
    policy_loss = aggregate(policy, o)
    kl_loss = o["kl_coef"] * aggregate(kl, o) if kl else torch.zeros(())
    bonus = -o["entropy_bonus"] * aggregate(entropy, o)
    (policy_loss + kl_loss + bonus).backward()
    out |= {
        "policy": policy_loss.item(),
        "kl": kl_loss.item(),
        "bonus": bonus.item(),
        "kl_sum": torch.cat(kl).sum().item() if kl else 0.0,
        "entropy_sum": torch.cat(entropy).sum().item(),
        "tokens": sum(len(x) for x in policy),
        "sequences": sum(len(x) > 0 for x in policy),
        "grad_lp": [x.grad.tolist() if x.grad is not None else [0.0] * len(x) for x in lps],
        "grad_entropy": [x.grad.tolist() if x.grad is not None else [0.0] * len(x) for x in entropies],
    }
    return out


def draw_options(rng: random.Random, index: int) -> dict[str, Any]:
    """One setting of every option."""
    loss = ("ppo", "gspo", "cispo", "nll")[index % 4]
    aggregations = ("token_mean", "seq_mean_token_sum", "seq_mean_token_mean", "seq_mean_token_sum_norm")
    kl = "" if loss == "nll" else rng.choice(["", "k2", "k3", "k3"])
    return {
        "loss": loss,
        "aggregation": aggregations[index // 4 % 4],
        "clip_low": rng.choice([0.1, 0.2]),
        "clip_high": rng.choice([0.2, 0.28]),
        "dual_clip": 3.0 if index % 8 < 4 else 0.0,
        "kl": kl,
        "kl_coef": 0.04 if kl else 0.0,
        "kl_clamp": rng.random() < 0.5,
        "max_tokens": 16,
        "correction_level": rng.choice(["", "token", "sequence"]),
        "correction_mode": rng.choice(["truncate", "mask"]),
        "correction_lower": 0.5,
        "correction_upper": 2.0,
        "covariance_kind": "" if loss == "nll" else rng.choice(["", "", "clip", "kl"]),
        "covariance_coef": 0.7,
        "entropy_bonus": rng.choice([0.0, 0.01]),
    }


def draw_trace(rng: random.Random, length: int, o: dict[str, Any], wild: bool) -> Trace:
    """One trace; a wild one reaches every bound."""
    mask = [rng.random() < 0.85 for _ in range(length)]
    spread = 1.5 if wild else 0.2

    def values(centre: list[float] | None, sigma: float) -> list[float]:
        out = []
        for i in range(length):
            base = centre[i] if centre is not None else -abs(rng.gauss(0, 1.5))
            out.append(base + rng.gauss(0, sigma) if mask[i] else -1.0)
        return out

    lp = values(None, 0.0)
    old = values(lp, spread)
    if wild and length > 5:  # reach every clamp
        old[0] += rng.choice([-30.0, 30.0]) if mask[0] else 0.0
    rollout = values(old, 0.4)
    reference = values(lp, 4.0 if wild else 0.5)
    if wild and length > 2 and mask[1]:
        reference[1] = lp[1] + rng.choice([-25.0, 25.0, 2.7])
    per_token = rng.random() < 0.3
    return {
        "lp": lp,
        "old": old,
        "rollout": rollout if o["correction_level"] or rng.random() < 0.5 else None,
        "reference": reference,
        "entropy": [abs(rng.gauss(0, 1)) if m else -1.0 for m in mask],
        "advantages": [rng.gauss(0, 1) for _ in range(length if per_token else 1)],
        "mask": mask,
        "kept": [rng.random() < 0.6 for _ in range(length)] if rng.random() < 0.3 else None,
        "covariance": [rng.random() < 0.3 for _ in range(length)] if o["covariance_kind"] else None,
    }


def draw_case(rng: random.Random, index: int) -> dict[str, Any]:
    """One update."""
    o = draw_options(rng, index)
    lengths = [rng.randint(1, 12) for _ in range(rng.randint(1, 4))] + [rng.choice([0, 1, 3])]
    traces = [draw_trace(rng, n, o, wild=index % 3 == 0) for n in lengths]
    traces[0]["mask"][0] = True  # never an update without a token
    for name, value in (("lp", -0.5), ("old", -0.4), ("reference", -0.6), ("entropy", 0.3)):
        if traces[0][name][0] == -1.0:
            traces[0][name][0] = value
    return {"options": o, "traces": traces}


def main() -> None:
    """Write the vectors to standard output."""
    rng = random.Random(508)
    cases = [draw_case(rng, index) for index in range(64)]
    for case in cases:
        case["want"] = solve(case)
    json.dump(cases, sys.stdout, separators=(",", ":"))
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
