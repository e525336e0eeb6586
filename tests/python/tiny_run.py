"""A training run of seconds, made with the program itself: three stages on phantoms, whose rewards differ in groups."""

from __future__ import annotations

import subprocess
from pathlib import Path

from engine_server import init_model

RECIPE = """\
name: tiny
seed: 3
runs_dir: {folder}/runs
model: {{path: {folder}/model, max_pixels: 12544}}
data: {{prompts: micro, images_first: true}}
stages:
  - {{name: align, kind: align, data: "phantom:captions:8", steps: 3, batch: 4, learning_rate: 1e-3}}
  - {{name: sft, kind: sft, data: {folder}/data/sft.json, steps: 50, batch: 16, learning_rate: 4e-3, decay: linear}}
  - {{name: rl, kind: rl, data: {folder}/data/train.json, steps: 3, learning_rate: 1e-3}}
rollout: {{group_size: 4, questions_per_step: 16, max_tokens: 32, concurrency: 8}}
grpo: {{kl: k3, kl_coef: 0.01}}
eval: {{data: {folder}/data/in_domain.json, questions: 4, traces: 2}}
checkpoint: {{every: 1}}
"""


def train(binary: Path, folder: Path) -> Path:
    """Run the tiny recipe in folder; return its run directory."""
    init_model(binary, folder / "model", 1)
    sizes = ["--sft", "16", "--train", "16", "--in-domain", "8", "--size", "28", "--kinds", "truefalse"]
    subprocess.run(
        [str(binary), "data", "phantom", "--out", str(folder / "data"), *sizes, "--long-share", "0"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=folder))
    done = subprocess.run([str(binary), "--config", str(recipe)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-3000:]}")
    return folder / "runs" / "tiny"


def policies(run: Path) -> list[Path]:
    """The checkpoints of a run as Hugging Face directories, the oldest first."""
    return sorted(step / "policy" for step in (run / "checkpoints").glob("step-*") if step.suffix == "")
