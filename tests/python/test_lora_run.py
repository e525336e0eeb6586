"""The quickstart with adapters on PyTorch: merged policies are served, and a killed trainer changes nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from test_killed_trainer import ROOT, ended, follow, start

SETTINGS = {"trainer.lora_rank": 8, "grpo.kl": "k3", "grpo.kl_coef": 0.01}
PROJECTION = re.compile(r"model\.layers\.\d+\..*\.(q|k|v|o|gate|up|down)_proj\.weight")


def test_a_run_with_adapters(tmp_path: Path) -> None:
    status, text = follow(start(tmp_path, "whole", **SETTINGS), tmp_path, "whole", "")
    assert status == 0, text[-3000:]
    want = ended(text)

    # Each stage adds adapters to what the one before made, and moves nothing but the projections.
    checkpoints = tmp_path / "whole" / "checkpoints"
    base = ROOT / "models" / "micro-base"
    for step in (5, 7):
        point = checkpoints / f"step-{step:06d}"
        before, after = (load_file(p / "model.safetensors") for p in (base, point / "policy"))
        moved = {n for n in after if not torch.equal(before[n], after[n])}
        assert moved == {n for n in after if PROJECTION.fullmatch(n)}, step
        config = json.loads((point / "adapter" / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (8, 16)
        assert Path(config["base_model_name_or_path"]) == base.resolve()
        merged = PeftModel.from_pretrained(
            AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32), point / "adapter"
        ).merge_and_unload()
        ours = AutoModelForImageTextToText.from_pretrained(point / "policy", dtype=torch.float32).state_dict()
        for name, tensor in merged.state_dict().items():
            torch.testing.assert_close(ours[name], tensor, atol=1e-6, rtol=1e-5)
        base = point / "policy"

    # A checkpoint inside a stage is gone on from: its base is the stage's start.
    status, text = follow(start(tmp_path, "killed", **SETTINGS), tmp_path, "killed", "rl 1")
    assert status != 0
    assert "is lost: its process ended: signal: killed" in text, text[-3000:]
    status, text = follow(start(tmp_path, "killed", **SETTINGS), tmp_path, "killed", "")
    assert status == 0, text[-3000:]
    assert ended(text) == want
