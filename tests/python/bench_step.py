"""One training step beside PyTorch on the same batch: 128 rows of 48 tokens, groups of 8 on one image.

Prints JSON lines: the Go benchmark's, PyTorch's, and their ratio. PyTorch gets a padded batch with the image in every
row, as its trainers do, logits of the response positions only, and two threads.

    python tests/python/bench_step.py
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gradient_case import IMAGE_PAD, VISION_END, VISION_START, config, write_checkpoint, write_picture

ROOT = Path(__file__).resolve().parents[2]
GROUPS, TRACES, PROMPT, RESPONSE = 16, 8, 28, 20
SIZES: dict[str, Any] = {"intermediate_size": 192, "vocab_size": 400}
VISION: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_heads": 4}


def load(folder: Path) -> torch.nn.Module:
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def batch(folder: Path) -> dict[str, torch.Tensor]:
    """input_ids [128, 48], pixel_values [128*36, 1176], image_grid_thw [128, 3]."""
    generator = torch.Generator().manual_seed(1)
    rows, pixels, grids = [], [], []
    for q in range(GROUPS):
        picture = write_picture(folder / "images", 84, 84, q)
        head = torch.randint(2, 390, (6,), generator=generator).tolist()
        tail = torch.randint(2, 390, (11,), generator=generator).tolist()
        prompt = [*head, VISION_START, *[IMAGE_PAD] * picture.tokens, VISION_END, *tail]
        assert len(prompt) == PROMPT
        for _ in range(TRACES):
            rows.append(prompt + torch.randint(2, 390, (RESPONSE,), generator=generator).tolist())
            pixels.append(picture.pixels)
            grids.append(picture.grid)
    ids = torch.tensor(rows)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE_PAD).int(),
        "pixel_values": torch.cat(pixels),
        "image_grid_thw": torch.cat(grids),
    }


def forward(model: torch.nn.Module, inputs: dict[str, torch.Tensor], shared: bool) -> torch.Tensor:
    """[128, 20, V] logits; shared encodes each image once for the rows of its group."""
    keep: dict[str, Any] = {"use_cache": False, "logits_to_keep": RESPONSE + 1}
    if not shared:
        return model(**inputs, **keep).logits[:, :-1]
    ids, grid = inputs["input_ids"], inputs["image_grid_thw"]
    patches = inputs["pixel_values"].unflatten(0, (GROUPS, TRACES, -1))[:, 0].flatten(0, 1)  # [16*36, 1176]
    features = torch.stack(model.model.get_image_features(patches, grid[::TRACES]).pooler_output)  # [16, 9, H]
    embeds = model.get_input_embeddings()(ids)
    pads = (ids == IMAGE_PAD)[..., None]
    embeds = embeds.masked_scatter(pads, features.repeat_interleave(TRACES, 0))
    positions, _ = model.model.get_rope_index(ids, inputs["mm_token_type_ids"], image_grid_thw=grid)
    mask = inputs["attention_mask"]
    return model(inputs_embeds=embeds, position_ids=positions, attention_mask=mask, **keep).logits[:, :-1]


def pytorch(runs: int, shared: bool) -> dict[str, Any]:
    """Median seconds of forward, backward and AdamW."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = config(tie=True) | SIZES
        sizes["vision_config"] |= VISION
        write_checkpoint(folder / "model", True, 1, sizes=sizes)
        model, inputs = load(folder / "model").train(), batch(folder)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        target = inputs["input_ids"][:, PROMPT:]  # [128, 20]
        times = []
        for _ in range(runs + 2):
            start = time.perf_counter()
            log = forward(model, inputs, shared).log_softmax(-1)
            lp = log.gather(-1, target[..., None])[..., 0]
            entropy = -(log.exp() * log).sum(-1)
            loss = -lp.mean() - 1e-9 * entropy.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            times.append(time.perf_counter() - start)
    images = "once a group" if shared else "once a row"
    seconds = statistics.median(times[2:])
    return {
        "bench": "pytorch/step",
        "images": images,
        "rows": GROUPS * TRACES,
        "tokens_per_row": 48,
        "seconds": seconds,
    }


def gorgonia(runs: int) -> dict[str, Any]:
    """The Go benchmark of the same shapes, through Load, Step and AdamW."""
    command = [
        "go",
        "test",
        "./trainer/graph",
        "-run",
        "^$",
        "-bench",
        "BenchmarkStep/step/rows=16x8",
        "-benchtime",
        f"{runs}x",
    ]
    env = os.environ | {"GOMAXPROCS": "2"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    lines = [line[line.index("{") :] for line in done.stdout.splitlines() if "graph/step" in line]
    return json.loads(lines[-1])


def main() -> None:
    go = gorgonia(20)
    lines = [go]
    for shared in (False, True):
        py = pytorch(10, shared)
        name = f"step, gorgonia over pytorch with images {py['images']}"
        lines += [py, {"bench": name, "ratio": go["seconds"] / py["seconds"]}]
    for line in lines:
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
