"""Bad input and faults: each is refused by name, and nothing is changed by what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PAD, Store, advantages, batch, options, run_step, shard, stage, write_checkpoint
from safetensors.torch import load_file, save_file

from uadt_trainer.blobs import BlobAddress, BlobClient
from uadt_trainer.bus import BusOptions, Incoming
from uadt_trainer.engine import Engine, EngineOptions
from uadt_trainer.errors import BadStepError, GroupError
from uadt_trainer.frames import ANSWER, COMMAND, decode, encode
from uadt_trainer.keeper import OPTIMIZER
from uadt_trainer.ranks import Ranks
from uadt_trainer.server import Server
from uadt_trainer.types import Group
from uadt_trainer.weights import CheckpointError, read_metadata

Make = Callable[[], Engine]


def test_an_image_that_is_not_there_is_named_with_its_group(store: Store, checkpoint: Path, tmp_path: Path) -> None:
    groups = batch(store, 1)
    away = BlobClient(lambda: BlobAddress("http://127.0.0.1:1", "t"), timeout=1, pause=0)
    e = Engine(EngineOptions(torch.device("cpu"), torch.float32, tmp_path / "work", away.fetch))
    e.begin(stage(checkpoint))
    with pytest.raises(GroupError, match=f"image {groups[0].images[0]}: .*refused") as caught:
        e.load(shard(1, groups))
    assert caught.value.group == groups[0].id
    e.load(shard(1, groups[2:]))  # a group without images needs no store


@pytest.mark.parametrize("split", ["one", "groups"])
@pytest.mark.parametrize("where", ["advantage", "model"])
def test_a_bad_step_names_the_traces_at_fault(
    engine: Make, store: Store, tmp_path: Path, where: str, split: str
) -> None:
    e, groups = engine(), batch(store, 1)
    e.begin(stage(write_checkpoint(tmp_path / "untied", tie=False)))
    for group in groups:
        for trace in group.traces:
            trace.tokens[trace.tokens == 7] = 8
            trace.mask[:] = True
    values = advantages(groups)
    if where == "advantage":
        values[1][0][0] = np.nan
    else:  # only a trace that has the token sees the infinite embedding, and only from there on
        groups[1].traces[0].tokens[0] = 7
        with torch.no_grad():
            e._running.policy.model.get_input_embeddings().weight[7] = torch.inf
    before = e.publish(0)[1]
    e.load(shard(1, groups, split))
    with pytest.raises(BadStepError) as caught:
        e.step(1, options(groups), values)
    assert (caught.value.step, caught.value.groups, caught.value.traces) == (1, ["g1-1"], ["g1-1/0"])
    assert caught.value.details()["traces"] == ["g1-1/0"]
    assert e.publish(1)[1] == before
    assert e.step_done == 1


def spoil(path: Path, change: Callable[[dict[str, torch.Tensor]], object], **config: object) -> Path:
    """Change the weights of a directory, or what its config.json says."""
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    text = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(text | config))
    return path


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("words", "change", "config"),
    [
        (f"lacks .*{UP.removeprefix('model.')}", lambda w: w.pop(UP), {}),
        ("lacks .*layers.2", lambda _: None, {"num_hidden_layers": 3}),
        ("does not describe: .*layers.1", lambda _: None, {"num_hidden_layers": 1}),
        ("another shape of .*mlp", lambda _: None, {"intermediate_size": 128}),
    ],
)
def test_weights_of_another_architecture_are_refused(
    engine: Make, store: Store, checkpoint: Path, tmp_path: Path, words: str, change: Callable, config: dict
) -> None:
    other = spoil(shutil.copytree(checkpoint, tmp_path / "other"), change, **config)
    e = engine()
    with pytest.raises(CheckpointError, match=words):
        e.begin(stage(other))
    e.begin(stage(checkpoint))
    run_step(e, 1, batch(store, 1))


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("optimizer state lacks first.model", lambda s: s.pop(next(k for k in s if "first.model" in k))),
        ("is \\(3, 3\\), want", lambda s: s.update({next(k for k in s if "second.model" in k): torch.zeros(3, 3)})),
    ],
)
def test_a_resume_point_of_another_architecture_is_refused(
    engine: Make, store: Store, checkpoint: Path, tmp_path: Path, words: str, change: Callable
) -> None:
    e = engine()
    e.begin(stage(checkpoint))
    run_step(e, 1, batch(store, 1))
    done, _ = e.save(tmp_path / "point")
    assert done.wait(60)
    path = tmp_path / "point" / OPTIMIZER
    state, metadata = load_file(path), read_metadata(path)
    change(state)
    save_file(state, path, metadata)
    with pytest.raises(CheckpointError, match=words):
        e.begin(stage(checkpoint, resume=tmp_path / "point", step=1))


def test_pickled_weights_are_not_read(
    engine: Make, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "pickled")
    torch.save(load_file(other / "model.safetensors"), other / "pytorch_model.bin")
    (other / "model.safetensors").unlink()
    read = []
    monkeypatch.setattr(torch, "load", lambda *a, **_: read.append(a))
    with pytest.raises(Exception, match="safetensors"):
        engine().begin(stage(other))
    assert not read


def test_an_image_pad_in_a_response_takes_no_image(engine: Make, store: Store, checkpoint: Path) -> None:
    e, groups = engine(), batch(store, 1)
    e.begin(stage(checkpoint))
    e.load(shard(1, groups))
    before = e.score(1, 1.0, ())
    odd = groups[0].traces[0]
    changed = dataclasses.replace(odd, tokens=np.where(np.arange(len(odd.tokens)) == 4, PAD, odd.tokens))
    spoiled = Group(groups[0].id, groups[0].prompt, groups[0].images, (changed, *groups[0].traces[1:]), 0)
    e.load(shard(1, [spoiled, *groups[1:]]))
    after = e.score(1, 1.0, ())
    # What precedes the pad, the other traces and the groups with images are as they were.
    keep = np.arange(len(before.old))
    keep = (keep < 4) | (keep >= len(odd.tokens))
    np.testing.assert_allclose(after.old[keep], before.old[keep], atol=1e-5)
    assert np.isfinite(after.old).all()
    assert (after.old[4 : len(odd.tokens)] != before.old[4 : len(odd.tokens)]).all()


RANK = """
import os
import sys
from datetime import timedelta
import numpy as np
import torch
import torch.distributed as dist
sys.path.insert(0, {package!r})
from uadt_trainer.ranks import CollectiveError, Ranks
from uadt_trainer.sharding import cut, through

rank, limit, what = int(sys.argv[1]), timedelta(seconds=float(sys.argv[2])), sys.argv[3]
dist.init_process_group("gloo", init_method="file://{meet}", rank=rank, world_size=2, timeout=limit)
ranks = Ranks(rank, 2)
layer = torch.nn.Linear(4, 4)
cut(layer, (), torch.device("cpu"), torch.float32)
ranks.wait()
print("met", flush=True)
if rank == 1:
    sys.stdin.read()  # it hangs, or is killed here
try:
    match what:
        case "numbers": ranks.sum([1.0])
        case "gradients": ranks.sum_gradients([torch.zeros(3)])
        case "maxima": ranks.largest(np.zeros(3))
        case "values": ranks.gather(np.zeros(3))
        case "score":
            with ranks.named("score"):
                through(layer, lambda m: m.weight.sum())
except CollectiveError as error:
    print(error, flush=True)
    os._exit(3)  # gloo's threads wait on
"""


@pytest.mark.parametrize(
    ("what", "killed"),
    [("numbers", False), ("gradients", False), ("maxima", True), ("values", True), ("score", False), ("score", True)],
)
def test_a_rank_that_does_not_come_is_not_waited_for(tmp_path: Path, what: str, killed: bool) -> None:
    script = tmp_path / "rank.py"
    package = str(Path(__file__).resolve().parents[1])
    script.write_text(RANK.format(package=package, meet=tmp_path / "meet"))
    limit = "600" if killed else "2"  # a rank that is killed is noticed at once
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), limit, what],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        assert [r.stdout.readline() for r in ranks] == ["met\n"] * 2
        if killed:
            ranks[1].kill()
        said, _ = ranks[0].communicate(timeout=100)
    finally:
        for r in ranks:
            r.kill()
            r.communicate()
    assert ranks[0].returncode == 3
    assert said.startswith("rank 0 of 2, ")
    assert what in said


class NoBus:
    """Takes the answers of a rank."""

    def __init__(self, *_: object) -> None:
        self.answers: list[dict] = []

    def answer(self, _to: Incoming, _schema: str, data: bytes, _suffix: str) -> None:
        self.answers.append(decode(ANSWER, data).message)


def test_a_rank_out_of_memory_says_so_and_ends(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("uadt_trainer.server.Bus", NoBus)
    o = EngineOptions(torch.device("cpu"), torch.float32, tmp_path, lambda _: b"")
    server = Server(BusOptions("nats://127.0.0.1:1", "r", 0, "", "_INBOX"), o, Ranks(), "me", "127.0.0.1")
    server._engine, server._scope = Engine(o), 1
    server._engine.begin(stage(checkpoint, incarnation=1))

    def no_room(*_: object) -> None:
        message = "tried to allocate 2.00 GiB"
        raise torch.OutOfMemoryError(message)

    monkeypatch.setattr(server._engine, "score", no_room)
    body = {"step": 1, "temperature": 1.0, "banned": []}
    command = encode(COMMAND, {"version": 1, "instance": "me", "body": body}, {})
    incoming = Incoming(1, "k", "score", command)
    with pytest.raises(torch.OutOfMemoryError):  # which ends the process: its memory is in nobody knows what state
        server._serve(incoming)
    failure = server._bus.answers[-1]["error"]
    assert (failure["type"], failure["message"]) == ("OutOfMemoryError", "tried to allocate 2.00 GiB")
