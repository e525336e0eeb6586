"""Decoding beside PyTorch on the same batch: 48 questions on an 84 x 84 image, 8 traces of 48 tokens each.

Prints JSON lines: the Go benchmark's, PyTorch's, and their ratio. PyTorch prefills each question once (image included),
repeats its cache for the 8 traces, and decodes all 384 together with sampling and log-probabilities, two threads.

    python tests/python/bench_decode.py
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from gradient_case import IMAGE_PAD, VIDEO_PAD, VISION_END, VISION_START, config

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS, TRACES, PROMPT, RESPONSE, IMAGE_TOKENS, ROUNDS = 48, 8, 40, 48, 9, 3


def build() -> Qwen2_5_VLForConditionalGeneration:
    """A model of the size that the Go benchmark decodes."""
    fields = config(tie=True) | {"intermediate_size": 192, "vocab_size": 400}
    fields["vision_config"] |= {"hidden_size": 64, "intermediate_size": 128, "num_heads": 4}
    torch.manual_seed(1)
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**fields)).float().eval()


def batch() -> dict[str, torch.Tensor]:
    """input_ids [48, 40], pixel_values [48*36, 1176], image_grid_thw [48, 3]."""
    text = torch.randint(2, 390, (QUESTIONS, PROMPT - IMAGE_TOKENS - 2))
    image = torch.tensor([VISION_START, *[IMAGE_PAD] * IMAGE_TOKENS, VISION_END]).expand(QUESTIONS, -1)
    ids = torch.cat([image, text], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE_PAD).int(),
        "pixel_values": torch.randn(QUESTIONS * 36, 1176),
        "image_grid_thw": torch.tensor([[1, 6, 6]]).expand(QUESTIONS, -1),
    }


@torch.inference_mode()
def decode(model: Qwen2_5_VLForConditionalGeneration, inputs: dict[str, torch.Tensor]) -> int:
    """Sample RESPONSE tokens for every trace; returns the number of tokens."""
    cache = DynamicCache(config=model.config.get_text_config())
    out = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(TRACES)
    logits = out.logits[:, -1].repeat_interleave(TRACES, 0)
    # M-RoPE: the image of 3 x 3 tokens advances the position by 3 instead of 9.
    position = PROMPT - IMAGE_TOKENS + 3
    count = 0
    for step in range(RESPONSE):
        logits[:, [IMAGE_PAD, VIDEO_PAD]] = -torch.inf
        logprobs = torch.log_softmax(logits, dim=-1)
        tokens = torch.multinomial(logprobs.exp(), 1)
        logprobs.gather(1, tokens)
        count += tokens.numel()
        if step + 1 < RESPONSE:
            positions = torch.full((3, QUESTIONS * TRACES, 1), position + step)
            logits = model(input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True).logits[
                :, -1
            ]
    return count


def native() -> dict[str, Any]:
    """Run the Go benchmark once and read its line."""
    command = ["go", "test", "-run", "^$", "-bench", "^BenchmarkDecode$", "-benchtime", "1s", "./internal/qwenvl"]
    done = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, env={**os.environ, "GOMAXPROCS": "2"}
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("{")]
    return json.loads(lines[-1])


def main() -> None:
    """Interleave both sides, so that a busy machine disturbs them alike."""
    torch.set_num_threads(2)
    model, inputs = build(), batch()
    decode(model, inputs)
    go, torch_rates = [], []
    for _ in range(ROUNDS):
        go.append(native()["tokens_per_second"])
        start = time.perf_counter()
        count = decode(model, inputs)
        torch_rates.append(count / (time.perf_counter() - start))
    line = {
        "bench": "native_decode_vs_pytorch",
        "traces": QUESTIONS * TRACES,
        "tokens_per_trace": RESPONSE,
        "native_tokens_per_second": int(statistics.median(go)),
        "pytorch_tokens_per_second": int(statistics.median(torch_rates)),
        "native_time_over_pytorch": round(statistics.median(torch_rates) / statistics.median(go), 3),
    }
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
