"""The paper's two recipes end to end on micro checkpoints: real vLLM samples, PyTorch trains, all on CPU.

Each recipe is run as a user would try it, from a directory with files of records where it looks for them, with
--rehearse and --set model.path, and with settings that let a micro model learn enough in seconds for its rewards to
differ. scripts/test-vllm.sh runs this; one server runs at a time.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars
import pytest
from transformers import AutoConfig, AutoModelForImageTextToText

from engine_server import ROOT, program

sys.path.insert(0, str(ROOT / "trainer" / "pytorch" / "tests"))
from micro_internvl import write_checkpoint

ALIGN_STEPS, SFT_STEPS, RL_STEPS = 2, 60, 2
STEPS = ALIGN_STEPS + SFT_STEPS + RL_STEPS
QUESTIONS, TRACES = 2, 8
# What a micro model needs beyond --rehearse: a random one writes no answer, and groups without one teach nothing.
TEACH = {
    "stages.sft.steps": SFT_STEPS,
    "stages.sft.batch": 8,
    "stages.rl.learning_rate": "1e-3",
    "checkpoint.every": 20,
}
FAST = {"qwen3b": "4e-3", "intern2b": "1e-2"}  # stages.sft.learning_rate; the micro InternVL begins untrained
# Where the recipes look for records: a folder's name, a split's flag, a split's file, the name it gets.
DATA = (
    ("align", "captions", "captions", "train"),
    ("cot", "sft", "sft", "train"),
    ("rl", "train", "train", "train"),
    ("eval", "in-domain", "in_domain", "test"),
)


@dataclass(frozen=True)
class Rehearsal:
    """A recipe, a micro checkpoint of its family, and a server of it."""

    recipe: str
    family: str
    binary: Path
    folder: Path  # where it runs: data and trainer are found as in a clone
    model: Path
    server: str

    def command(self, *arguments: str, **settings: Any) -> list[str]:
        """The command line of the program for this recipe."""
        line = [str(self.binary), *arguments, "--config", str(ROOT / "configs" / f"{self.recipe}.yaml"), "--rehearse"]
        settings = {"model.path": self.model, "rollout.servers": f"[{self.server}]", **TEACH, **settings}
        settings.setdefault("stages.sft.learning_rate", FAST[self.recipe])
        for key, value in settings.items():
            line += ["--set", f"{key}={value}"]
        return line

    def start(self, *arguments: str, **settings: Any) -> subprocess.Popen[str]:
        """Start the program with the interpreter of this test first on the path."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.Popen(
            self.command(*arguments, **settings),
            cwd=self.folder,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},  # more threads only wait for each other here
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **settings: Any) -> tuple[int, str, str]:
        """Run the program to its end; return exit code, standard output and standard error."""
        process = self.start(*arguments, **settings)
        out, log = process.communicate(timeout=170)
        return process.returncode, out, log

    def directory(self, name: str) -> Path:
        return self.folder / "runs" / name


def write_data(binary: Path, folder: Path) -> None:
    """Write phantoms, of all question types and with one to three images, where the recipes look for records."""
    for name, flag, split, wanted in DATA:
        home = folder / "data" / name
        sizes = [f"--{flag}", "32", "--long-share", "-1", "--complex-share", "0.25", "--seed", "1"]
        made = [str(binary), "data", "phantom", "--out", str(home), *sizes]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
        (home / f"{split}.json").rename(home / f"{wanted}.json")


def responses(folder: Path) -> list[str]:
    """What the SFT stage teaches: a vocabulary made of it has short responses, which a micro model learns soon."""
    texts = []
    for record in json.loads((folder / "data" / "cot" / "train.json").read_text()):
        answer = next(turn["value"] for turn in record["conversations"] if turn["from"] == "gpt")
        texts.append(f"<think>{record['reason']}</think><answer>{answer}</answer>")
    return texts


def serve(model: Path, log: Path) -> tuple[int, str]:
    """Start vLLM on a model; return the id of its process group, and its address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    limit = ["--limit-mm-per-prompt", '{"image": 6, "video": 0}']  # data.max_images of the recipes
    command = [str(ROOT / "scripts" / "vllm-cpu" / "serve.sh"), str(model), str(port), str(log), *limit]
    environment = {**os.environ, "UADT_VLLM_LENGTH": "2048"}
    started = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return int(started.stdout), f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program(tmp_path_factory.mktemp("program")).resolve()


@pytest.fixture(scope="module", params=["qwen3b", "intern2b"])
def rehearsal(
    request: pytest.FixtureRequest, binary: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rehearsal]:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "trainer").symlink_to(ROOT / "trainer")
    write_data(binary, folder)
    if request.param == "qwen3b":
        family, model = "qwen2_5_vl", ROOT / "models" / "micro-base"
    else:
        family, model = "internvl", write_checkpoint(folder / "model", corpus=responses(folder), size=400)
    group, server = serve(model, folder / "vllm.log")
    try:
        yield Rehearsal(request.param, family, binary, folder, model, server)
    finally:
        os.killpg(group, signal.SIGTERM)


@pytest.fixture(scope="module")
def whole(rehearsal: Rehearsal) -> tuple[Path, str]:
    """The directory and the log of an unbroken run."""
    status, _, log = rehearsal.run(name="whole")
    assert status == 0, log[-3000:]
    return rehearsal.directory("whole"), log


def ended(log: str) -> str:
    """Return the digest of the weights that a run ended with."""
    found = re.search(r'msg="run ended".* finished=true step=(\d+) digest=(\w{64})', log)
    assert found, log[-3000:]
    assert int(found[1]) == STEPS
    return found[2]


def ledger(run: Path) -> polars.DataFrame:
    return polars.read_parquet(str(run / "ledger" / "step-*.parquet")).sort("step", "job", "trace")


def test_doctor_finds_nothing(rehearsal: Rehearsal) -> None:
    status, out, log = rehearsal.run("doctor")
    assert status == 0, out + log
    assert "FAIL" not in out


def test_every_stage_runs(rehearsal: Rehearsal, whole: tuple[Path, str]) -> None:
    run, log = whole
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["stage"] for line in lines if line["kind"] == "step"]
    assert steps == ["align"] * ALIGN_STEPS + ["sft"] * SFT_STEPS + ["rl"] * RL_STEPS
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [STEPS - RL_STEPS, STEPS]
    trained = [line for line in lines if line["kind"] == "step" and line["stage"] == "rl"]
    for line in trained:
        assert line["rollout/trained"] == QUESTIONS
        assert line["grad/norm"] > 0, "no reward differed: nothing was learned, and nothing below says much"
        # The server's log-probabilities are those of the trainer's weights: it has adopted each of them.
        assert abs(line["rollout_gap/w_max"] - 1) < 1e-3
        assert line["kl/behaviour"] < 1e-5
    assert log.count('msg="policy adopted"') == RL_STEPS + 1
    assert len(set(re.findall(r'msg="policy adopted" policy=1\.\d+-(\w+)', log))) == RL_STEPS + 1


def test_ledger_accounts_for_every_trace(rehearsal: Rehearsal, whole: tuple[Path, str]) -> None:
    rows = ledger(whole[0])
    assert len(rows) == RL_STEPS * QUESTIONS * TRACES
    assert rows["server"].unique().to_list() == [rehearsal.server]
    assert (rows["policy_received"] == rows["step"] - (STEPS - RL_STEPS) - 1).all()
    assert rows.group_by("job").len()["len"].to_list() == [TRACES] * RL_STEPS * QUESTIONS
    assert rows["reward"].n_unique() > 1
    assert rows["advantage_shaped"].abs().sum() > 0
    assert rows["prompt_tokens"].min() > 150, "the recipe's system text and question suffix are longer"


def test_checkpoint_opens_in_transformers(rehearsal: Rehearsal, whole: tuple[Path, str]) -> None:
    policy = whole[0] / "checkpoints" / f"step-{STEPS:06d}" / "policy"
    assert AutoConfig.from_pretrained(policy).model_type == rehearsal.family
    after, before = (AutoModelForImageTextToText.from_pretrained(path) for path in (policy, rehearsal.model))
    moved = {name for name, p in after.named_parameters() if not p.equal(before.get_parameter(name))}
    assert any("language_model" in name for name in moved)
    assert any("vision" in name or "visual" in name for name in moved)


def test_killed_coordinator_resumes_to_the_same_weights(rehearsal: Rehearsal, whole: tuple[Path, str]) -> None:
    process = rehearsal.start(name="killed")
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if " msg=step stage=rl step=1 " in line:
            process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL, "".join(seen)[-3000:]
    status, _, log = rehearsal.run("--resume", name="killed")
    assert status == 0, log[-3000:]
    assert "resumed=true" in log
    assert ended(log) == ended(whole[1])
    one, other = ledger(whole[0]), ledger(rehearsal.directory("killed"))
    for column in ("question", "trace", "seed", "text", "reward"):
        assert one[column].to_list() == other[column].to_list(), column
