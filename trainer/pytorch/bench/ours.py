#!/usr/bin/env python3
"""Times our forward, loss and backward, and the score pass, at Qwen2.5-VL-3B's shape. JSON lines.

    python bench/ours.py [--cases trained,frozen,...] [--tiny]

`s` is a micro-batch of `groups` groups: forward, loss, backward, gradients dropped first. The optimizer
is left out, as it is in the peer's figures. `share_of_floor` is the arithmetic (6 operations a weight and
token, 8 with recomputation) at 790 TFLOP/s over the measured time.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
import shape  # noqa: E402

from uadt_trainer.layers import Stack  # noqa: E402
from uadt_trainer.loss import TokenData, update_loss  # noqa: E402
from uadt_trainer.model import Pixels, Policy  # noqa: E402
from uadt_trainer.packing import Packed, pack  # noqa: E402
from uadt_trainer.types import Denominators, StepOptions  # noqa: E402

PEAK = 790e12  # bfloat16 operations a second of a large matrix product on this class of GPU
GRID = (1, shape.SIDE // 14, shape.SIDE // 14)

# name -> options. groups: of a micro-batch. ckpt: activations computed again. frozen: vision and projector.
CASES: dict[str, dict] = {
    "trained": {},
    "trained-4groups": {"groups": 4},
    "trained-nockpt": {"ckpt": False},
    "trained-nockpt-2groups": {"ckpt": False, "groups": 2},
    "frozen": {"frozen": True},
    "frozen-4groups": {"frozen": True, "groups": 4},
    "frozen-nockpt": {"frozen": True, "ckpt": False},
    "trained-1024-2048": {"prompt": 1024, "response": 2048},
    "uniform-4groups": {"groups": 4, "response": 384, "ckpt": True},
    "ragged-4groups": {"groups": 4, "response": 384, "ragged": True},
    "trained-uncompiled": {"compiled": False},
}


def say(**values: object) -> None:
    """Write one JSON line."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


class Bench:
    """One model on one device."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.a = a
        self.device = torch.device(a.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.model = shape.model(self.device, self.dtype, a.tiny)

    def policy(self, o: dict) -> Policy:
        """Wrap the model for a case."""
        compiled = self.device.type == "cuda" and o.get("compiled", True)
        policy = Policy(self.model, self.device, Stack(compiled=compiled, checkpointing=o.get("ckpt", True)))
        policy.freeze(("vision", "projector") if o.get("frozen") else ())
        return policy

    def batch(self, policy: Policy, o: dict, seed: int = 0) -> tuple[Packed, Pixels]:
        """Pack a micro-batch."""
        count, prompt, response = o.get("groups", 1), o.get("prompt", 512), o.get("response", 512)
        if self.a.tiny:
            prompt, response = 300, 16
        lengths = [[response] * self.a.group] * count
        if o.get("ragged"):
            # The same tokens in all, so that what differs is raggedness alone.
            lengths = even(shape.lognormal(count, self.a.group, response, 4 * response, seed), count, response)
        made = shape.groups(count, prompt, lengths, seed)
        positions = [policy.prompt_positions(g.prompt, [GRID]) for g in made]
        packed = pack(made, [(0, len(g.traces)) for g in made], shape.PAD, positions).to(self.device)
        values = torch.randn(count * GRID[1] * GRID[2], 1176, device=self.device, dtype=self.dtype)
        return packed, Pixels(values, torch.tensor([GRID] * count))

    def step(self, policy: Policy, packed: Packed, pixels: Pixels) -> torch.Tensor:
        """Forward, loss, backward."""
        scores = policy.score(packed, pixels, 1.0, (shape.PAD, shape.VIDEO))
        count = len(packed.lengths)
        lengths = torch.tensor(packed.lengths)
        rows = torch.repeat_interleave(torch.arange(count), lengths).to(self.device)
        advantages = torch.linspace(-1, 1, count, device=self.device)[rows]
        data = TokenData(
            mask=torch.ones_like(rows, dtype=torch.bool),
            rows=rows,
            num_rows=count,
            advantages=advantages,
            old=scores.logprobs.detach(),
            reference=None,
            rollout=None,
            entropy_kept=None,
            covariance_hit=None,
        )
        options = StepOptions(loss="ppo", denominators=Denominators(len(rows), count, 512), learning_rate=1e-6)
        result = update_loss(scores.logprobs, scores.entropies, data, options)
        result.loss.backward()
        return result.loss.detach()

    def clear(self) -> None:
        """Drop gradients and caches, so that peaks are of the case alone."""
        self.model.zero_grad(set_to_none=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def clock(self) -> float:
        """Return the time once the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def peak(self) -> float:
        """Return the peak memory in GiB."""
        return round(torch.cuda.max_memory_allocated() / 2**30, 1) if self.device.type == "cuda" else 0.0

    def run(self, name: str, o: dict) -> None:
        """Time a case."""
        policy = self.policy(o)
        packed, pixels = self.batch(policy, o)
        self.clear()
        begun = self.clock()
        for _ in range(self.a.warmup):
            self.model.zero_grad(set_to_none=True)
            self.step(policy, packed, pixels)
        warm = self.clock() - begun
        times = []
        for _ in range(self.a.reps):
            self.model.zero_grad(set_to_none=True)
            start = self.clock()
            self.step(policy, packed, pixels)
            times.append(self.clock() - start)
        peak = self.peak()
        self.model.zero_grad(set_to_none=True)
        score = []
        with torch.no_grad():
            for _ in range(2 + self.a.reps):
                start = self.clock()
                policy.score(packed, pixels, 1.0, (shape.PAD, shape.VIDEO))
                score.append(self.clock() - start)
        s, groups = statistics.median(times), o.get("groups", 1)
        tokens = packed.tokens.numel()
        say(
            case="ours-" + name,
            s=round(s, 4),
            traces_s=round(groups * self.a.group / s, 2),
            min_s=round(min(times), 4),
            max_s=round(max(times), 4),
            score_s_group=round(statistics.median(score[2:]) / groups, 4),
            peak_gib=peak,
            tokens=tokens,
            tokens_s=round(tokens / s),
            share_of_floor=round(floor(tokens, groups, o) / s, 3),
            groups=groups,
            warm_s=round(warm, 1),
        )

    def agreement(self) -> None:
        """Cosine of all gradients between our step and the naive padded one, both in the model's type."""
        policy = self.policy({})
        o = {"response": 128, "prompt": 512}
        packed, pixels = self.batch(policy, o)
        self.clear()
        ours_loss = self.step(policy, packed, pixels)
        ours = {n: p.grad.cpu() for n, p in self.model.named_parameters()}
        self.model.zero_grad(set_to_none=True)
        naive_loss = self.naive(o, pixels)
        naive = {n: p.grad.cpu() for n, p in self.model.named_parameters()}
        self.model.zero_grad(set_to_none=True)
        self.model.float()
        self.naive(o, Pixels(pixels.values.float(), pixels.grids))
        exact = {n: p.grad for n, p in self.model.named_parameters()}
        say(
            check="gradient agreement, one group, responses of 128",
            ours_and_naive=alike(ours, naive),
            ours_and_float32=alike(ours, exact),
            naive_and_float32=alike(naive, exact),
            loss=[float(ours_loss), float(naive_loss)],
        )
        self.model.zero_grad(set_to_none=True)
        self.model.to(self.dtype)

    def naive(self, o: dict, pixels: Pixels) -> torch.Tensor:
        """Run transformers' own forward, every trace with its prompt and image, full logits."""
        g, response = self.a.group, 16 if self.a.tiny else o["response"]
        prompt = 300 if self.a.tiny else o["prompt"]
        made = shape.groups(1, prompt, [[response] * g], 0)[0]
        ids = np.stack([np.concatenate((made.prompt, t.tokens)) for t in made.traces]).astype(np.int64)
        tokens = torch.from_numpy(ids).to(self.device)
        logits = self.model(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            pixel_values=pixels.values.repeat(g, 1),
            image_grid_thw=torch.tensor([GRID] * g, device=self.device),
            mm_token_type_ids=(tokens == shape.PAD).int(),
            logits_to_keep=response + 1,
        ).logits[:, :-1]
        logits = logits.float()
        logits[..., [shape.PAD, shape.VIDEO]] = -1e30
        lp = torch.log_softmax(logits, -1).gather(-1, tokens[:, -response:, None]).squeeze(-1)
        ratio = torch.exp(lp - lp.detach())
        advantages = torch.linspace(-1, 1, g, device=self.device)[:, None]
        loss = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
        loss.backward()
        return loss.detach()

    def profile(self, o: dict) -> None:
        """Where the GPU's time goes, by kind of kernel, and how much of the wall time it works."""
        policy = self.policy(o)
        packed, pixels = self.batch(policy, o)
        for _ in range(2):
            self.model.zero_grad(set_to_none=True)
            self.step(policy, packed, pixels)
        self.model.zero_grad(set_to_none=True)
        begin = self.clock()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as prof:
            self.step(policy, packed, pixels)
            self.clock()
        wall = time.perf_counter() - begin
        kinds: dict[str, float] = {}
        top: list[tuple[float, str, int]] = []
        for e in prof.key_averages():
            ms = e.self_device_time_total / 1e3
            kind = kind_of(e.key)
            kinds[kind] = kinds.get(kind, 0.0) + ms
            top.append((round(ms, 2), e.key[:70], e.count))
        say(
            profile=o,
            wall_ms=round(wall * 1e3, 1),
            ms={k: round(v, 1) for k, v in sorted(kinds.items(), key=lambda kv: -kv[1])},
            top=sorted(top, reverse=True)[:14],
        )


def alike(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> dict[str, object]:
    """Compare two sets of gradients: the cosine of all, the worst of one tensor, the ratio of norms."""
    dot, xx, yy, worst = 0.0, 0.0, 0.0, (1.0, "")
    for name, x in a.items():
        y = b[name].float().flatten()
        x = x.to(y.device).float().flatten()  # noqa: PLW2901
        d, u, v = float(x @ y), float(x @ x), float(y @ y)
        dot, xx, yy = dot + d, xx + u, yy + v
        if u * v > 0:
            worst = min(worst, (d / (u * v) ** 0.5, name))
    return {
        "cosine": round(dot / (xx * yy) ** 0.5, 6),
        "worst": [round(worst[0], 6), worst[1]],
        "norms": round((xx / yy) ** 0.5, 5),
    }


def even(lengths: list[list[int]], count: int, response: int) -> list[list[int]]:
    """Scale ragged lengths to the same total as uniform ones."""
    total = sum(map(sum, lengths))
    want = count * len(lengths[0]) * response
    out = [[max(16, n * want // total) for n in row] for row in lengths]
    out[0][0] += want - sum(map(sum, out))
    return out


def floor(tokens: int, groups: int, o: dict) -> float:
    """Seconds of the arithmetic alone: 3.09 B text weights, and the tower's 4 TFLOP an image."""
    text = (8 if o.get("ckpt", True) else 6) * 3.09e9 * tokens
    tower = (1.33 if not o.get("frozen") else 0.4) * 4e12 * groups
    return (text + tower) / PEAK


def kind_of(name: str) -> str:
    """Sort kernels."""
    low = name.lower()
    for words, kind in (
        (("flash", "fmha"), "attention"),
        (("gemm", "nvjet", "cutlass", "sm90", "cublas", "wgrad"), "matrix products"),
        (("triton",), "fused elementwise and reductions"),
        (("memcpy", "memset"), "copies"),
        (("index", "gather", "scatter"), "gather and scatter"),
    ):
        if any(w in low for w in words):
            return kind
    return "other elementwise"


def main() -> None:
    """Run the cases that were asked for."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--cases", default=",".join(CASES))
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--group", type=int, default=8)
    p.add_argument("--reps", type=int, default=5)
    p.add_argument("--warmup", type=int, default=2)
    p.add_argument("--tiny", action="store_true", help="a CPU-sized model: checks the plumbing, its times mean nothing")
    p.add_argument("--budget", type=float, default=1e9, help="seconds after which no further case begins")
    a = p.parse_args()
    name = torch.cuda.get_device_name() if a.device.startswith("cuda") else "cpu"
    say(torch=torch.__version__, device=name)
    begun = time.perf_counter()
    bench = Bench(a)
    for case in a.cases.split(","):
        if time.perf_counter() - begun > a.budget:
            say(case=case, skipped="out of time")
            continue
        try:
            if case == "agreement":
                bench.agreement()
            elif case.startswith("profile:"):
                bench.profile(CASES[case.removeprefix("profile:")])
            else:
                bench.run(case, CASES[case])
        except Exception as error:  # noqa: BLE001 - a case that fails is a result too
            say(case=case, failed=type(error).__name__, what=str(error)[:600])


if __name__ == "__main__":
    main()
