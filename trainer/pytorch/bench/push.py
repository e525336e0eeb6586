#!/usr/bin/env python3
"""Times weights that are broadcast to one live vLLM server, from pause to resume. JSON lines.

    python bench/push.py --url http://127.0.0.1:8100 --checkpoint DIR [--device cuda] [--pushes 6]

The trainer's half is the package's own; the server's calls are those of the Go client, in its order. Random
weights of the shape of DIR's config.json are pushed in turn, two sets of them: after each push the server's
log-probabilities must be those of the same set before, and differ from the other's.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uadt_trainer.transfer import PolicyId, Transfer  # noqa: E402

LIMIT = 120.0  # seconds of one wait


def say(**values: object) -> None:
    """Write one JSON line."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


class Server:
    """The calls of one server; each adds its seconds to phases."""

    def __init__(self, url: str) -> None:
        self._url, self.phases = url, {}

    def call(self, phase: str, route: str, body: Any = None, method: str = "POST") -> Any:
        """Send one request and return its answer."""
        started = time.perf_counter()
        data = json.dumps(body).encode() if body is not None else b"" if method == "POST" else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + route, data, headers, method=method)  # noqa: S310 - our own server
        with urllib.request.urlopen(request, timeout=LIMIT) as response:  # noqa: S310
            answer = response.read()
        self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - started
        return json.loads(answer) if answer else None

    def beside(self, phase: str, route: str, body: Any) -> threading.Thread:
        """Send one request on a thread: it answers only when the trainer has done its half."""
        thread = threading.Thread(target=self.call, args=(phase, route, body), daemon=True)
        thread.start()
        return thread

    def logprobs(self, policy: PolicyId) -> list[float]:
        """Sample a few tokens and return their log-probabilities."""
        body = {
            "model": "policy",
            "messages": [{"role": "user", "content": "Is this an eye?"}],
            "max_tokens": 8,
            "ignore_eos": True,
            "seed": 1,
            "logprobs": True,
            "cache_salt": str(policy),
        }
        choice = self.call("sample", "/v1/chat/completions", body)["choices"][0]
        return [t["logprob"] for t in choice["logprobs"]["content"]]


def weights(checkpoint: Path, device: torch.device, seed: int) -> dict[str, torch.Tensor]:
    """Draw weights of the checkpoint's shape, bfloat16 on a GPU and float32 elsewhere."""
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(checkpoint))
    finally:
        torch.set_default_dtype(before)
    return {n: p.detach() for n, p in model.named_parameters()}


def push(server: Server, transfer: Transfer, group: str, policy: PolicyId) -> float:
    """Bring a held policy live; return the seconds from pause to resume."""
    update = transfer.prepare(group, policy, LIMIT)
    started = time.perf_counter()
    server.call("pause", "/pause?mode=wait&clear_cache=true")
    server.call("start", "/start_weight_update")
    receiving = server.beside("update", "/update_weights", update)
    transfer.send(group, LIMIT)
    receiving.join(LIMIT)
    server.call("finish", "/finish_weight_update")
    for route in ("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache"):
        server.call("caches", route)
    server.call("resume", "/resume")
    return time.perf_counter() - started


def main() -> int:
    """Push and report."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--url", required=True)
    p.add_argument("--checkpoint", required=True, type=Path)
    p.add_argument("--device", default="cuda")
    p.add_argument("--address", default="127.0.0.1")
    p.add_argument("--pushes", type=int, default=6)
    a = p.parse_args()
    device = torch.device("cuda:0" if a.device == "cuda" else a.device)
    server, transfer = Server(a.url), Transfer(device, a.address)
    sets = [weights(a.checkpoint, device, seed) for seed in (1, 2)]
    size = sum(t.numel() * t.element_size() for t in sets[0].values())
    world = server.call("world", "/get_world_size", method="GET")["world_size"] + 1
    first = PolicyId(1, 0, "0" * 64)
    transfer.hold(first, sets[0], sets[0])
    started = time.perf_counter()
    joined = transfer.join(a.url, first, world, LIMIT)
    joining = server.beside("init", "/init_weight_transfer_engine", {"init_info": joined["init_info"]})
    transfer.prepare(joined["group"], first, LIMIT)
    joining.join(LIMIT)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    say(case="push-join", seconds=round(time.perf_counter() - started, 4), world=world, gpu=gpu)
    seen: list[list[float]] = []
    for i in range(a.pushes):
        policy = PolicyId(1, i, f"{i:064x}")
        transfer.hold(policy, sets[i % 2], sets[i % 2])
        server.phases.clear()
        took = push(server, transfer, joined["group"], policy)
        phases = {k: round(v, 4) for k, v in server.phases.items()}
        seen.append(server.logprobs(policy))
        say(
            case="push",
            tensors=len(sets[0]),
            gb=round(size / 1e9, 3),
            pause_to_resume_s=round(took, 4),
            phases_s=phases,
        )
    apart = [max(abs(x - y) for x, y in zip(seen[i], seen[j], strict=True)) for i, j in ((0, 2), (0, 1))]
    say(case="push-check", same_weights_apart=round(apart[0], 5), other_weights_apart=round(apart[1], 5))
    transfer.close()
    return 0 if apart[0] < apart[1] / 10 else 1


if __name__ == "__main__":
    sys.exit(main())
