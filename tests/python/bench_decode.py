"""Decoding in PyTorch on the batch of the native benchmark, with two threads: one JSON line.

384 traces of 48 tokens: 48 prompts of 40 tokens with an image of 84 x 84 pixels (9 tokens), 8 traces each, sampled
at temperature 1, with a KV cache; the images are encoded once. The time includes images and prompts.

    python tests/python/bench_decode.py
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench_step import SIZES, VISION, load
from gradient_case import IMAGE_PAD, VISION_END, VISION_START, config, write_checkpoint, write_picture

QUESTIONS, TRACES, PROMPT, RESPONSE = 48, 8, 40, 48


def prompts(folder: Path) -> dict[str, torch.Tensor]:
    """input_ids [48, 40], pixel_values [48*36, 1176], image_grid_thw [48, 3]."""
    rows, pixels, grids = [], [], []
    for q in range(QUESTIONS):
        picture = write_picture(folder / "images", 84, 84, q)
        text = [100 + (q * 31 + j * 7) % 250 for j in range(PROMPT - picture.tokens - 2)]
        rows.append([VISION_START, *[IMAGE_PAD] * picture.tokens, VISION_END, *text])
        pixels.append(picture.pixels)
        grids.append(picture.grid)
    return {"input_ids": torch.tensor(rows), "pixel_values": torch.cat(pixels), "image_grid_thw": torch.cat(grids)}


@torch.inference_mode()
def decode(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """[384, 48] sampled tokens; the prompts go through once, their cache is repeated for the traces."""
    ids, grid = inputs["input_ids"], inputs["image_grid_thw"]
    features = torch.cat(model.model.get_image_features(inputs["pixel_values"], grid).pooler_output)
    pads = ids == IMAGE_PAD
    embeds = model.get_input_embeddings()(ids).masked_scatter(pads[..., None], features)
    positions, _ = model.model.get_rope_index(ids, pads.int(), image_grid_thw=grid)  # [3, 48, 40]
    out = model(inputs_embeds=embeds, position_ids=positions, use_cache=True, logits_to_keep=1)
    cache = out.past_key_values
    cache.batch_repeat_interleave(TRACES)
    logits = out.logits[:, -1].repeat_interleave(TRACES, 0)  # [384, V]
    position = positions.amax((0, 2)).repeat_interleave(TRACES)[None, :, None].expand(3, -1, -1)
    tokens = []
    for step in range(RESPONSE):
        token = torch.multinomial(logits.softmax(-1), 1)  # [384, 1]
        tokens.append(token)
        if step < RESPONSE - 1:
            position = position + 1
            logits = model(input_ids=token, position_ids=position, past_key_values=cache, use_cache=True).logits[:, -1]
    return torch.cat(tokens, 1)


def main() -> None:
    torch.set_num_threads(2)
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = config(tie=True) | SIZES
        sizes["vision_config"] |= VISION
        write_checkpoint(folder / "model", True, 1, sizes=sizes)
        model, inputs = load(folder / "model").eval(), prompts(folder)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            tokens = decode(model, inputs)
            times.append(time.perf_counter() - start)
    seconds = statistics.median(times[1:])
    line = {"bench": "pytorch/decode", "traces": QUESTIONS * TRACES, "tokens_per_second": tokens.numel() / seconds}
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
