"""A PyTorch trainer killed again and again: no step's effect is lost, and none is applied twice."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
STEPS = 7
SFT_STEPS = 5
KILLS = ("sft 2", "rl 1")  # the rank is killed when this step of this stage has been made


def start(runs: Path, name: str, **more: object) -> subprocess.Popen[str]:
    settings = {
        "runs_dir": runs,
        "trainer.backend": "pytorch",
        "trainer.python": sys.executable,
        "bus.listen": "127.0.0.1:0",
        "stages.sft.steps": SFT_STEPS,
        "stages.rl.steps": STEPS - SFT_STEPS,
        # After so few steps all traces of a group are worth the same: the entropy bonus is what moves the policy.
        "stages.rl.learning_rate": "1e-3",
        "grpo.entropy_bonus": 0.01,
        "rollout.questions_per_step": 4,
        "eval.questions": 4,
        "checkpoint.every": 2,
        **more,
    }
    command = [ROOT / "bin" / "uadt-train", "--config", "configs/quickstart.yaml", "--run", name]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def rank(runs: Path, name: str) -> int:
    """Return the id of the rank's process from its own log."""
    log = (runs / name / "logs" / "rank-0.log").read_text()
    return int(re.findall(r"rank 0 of 1, process (\d+)", log)[-1])


def follow(process: subprocess.Popen[str], runs: Path, name: str, kill_after: str) -> tuple[int, str]:
    """Read the log to its end, killing the rank once that step is made; return exit status and text."""
    lines = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        found = re.search(r" msg=step stage=(\w+) step=(\d+) ", line)
        if found and f"{found[1]} {found[2]}" == kill_after:
            os.kill(rank(runs, name), signal.SIGKILL)
    return process.wait(60), "".join(lines)


def ended(text: str) -> str:
    """Return the digest of the weights that a run ended with."""
    found = re.search(r'msg="run ended".* finished=true step=(\d+) digest=(\w{64})', text)
    assert found, text[-3000:]
    assert int(found[1]) == STEPS
    return found[2]


def test_kills_change_nothing(tmp_path: Path) -> None:
    status, text = follow(start(tmp_path, "whole"), tmp_path, "whole", "")
    assert status == 0, text[-3000:]
    want = ended(text)
    sft, rl = (
        load_file(tmp_path / f"whole/checkpoints/step-{n:06d}/policy/model.safetensors") for n in (SFT_STEPS, STEPS)
    )
    assert any(not torch.equal(rl[name], sft[name]) for name in sft), "RL moved nothing: a kill in it proves nothing"
    for after in KILLS:
        status, text = follow(start(tmp_path, "killed"), tmp_path, "killed", after)
        assert status != 0
        assert "is lost: its process ended: signal: killed" in text, text[-3000:]
    status, text = follow(start(tmp_path, "killed"), tmp_path, "killed", "")
    assert status == 0, text[-3000:]
    assert ended(text) == want
