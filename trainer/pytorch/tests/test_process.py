"""The process: command line, standard input, interrupts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from uadt_trainer.__main__ import device_of, facing, inbox, join, parse

PACKAGE = Path(__file__).resolve().parents[1]


def arguments(*more: str) -> list[str]:
    return ["--bus", "nats://127.0.0.1:1", "--run", "r", "--work", "w", *more]


def test_one_rank_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    ranks, first = join(parse(arguments()), torch.device("cpu"))
    assert (ranks.rank, ranks.world) == (0, 1)
    assert join(parse(arguments()), torch.device("cpu"))[1] != first  # every process has a name of its own
    assert join(parse(arguments("--instance", "mine")), torch.device("cpu"))[1] == "mine"
    assert device_of("cpu") == torch.device("cpu")


def test_inbox_is_that_of_the_role() -> None:
    import nkeys

    assert inbox("") == "_INBOX"
    pair = nkeys.from_seed(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER))
    name = inbox(pair.seed.decode())
    assert name == f"_INBOX_{pair.public_key.decode()}"
    assert name.startswith("_INBOX_U")


def test_servers_find_the_trainer_where_it_faces_the_bus() -> None:
    for bus in ("nats://127.0.0.1:4222", "127.0.0.1:4222", "localhost", "nats://no-such-host.invalid:4222"):
        assert facing(bus) == "127.0.0.1", bus


def test_it_ends_with_whoever_started_it_and_not_by_an_interrupt() -> None:
    # A listener that never answers: the process waits for the bus.
    with socket.create_server(("127.0.0.1", 0)) as server:
        bus = f"nats://127.0.0.1:{server.getsockname()[1]}"
        command = [sys.executable, "-m", "uadt_trainer", *arguments("--device", "cpu", "--watch-stdin")]
        command[command.index("nats://127.0.0.1:1")] = bus
        environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        server.settimeout(100)
        connection, _ = server.accept()  # it is up
        with connection:
            process.send_signal(signal.SIGINT)
            process.stdin.close()
            assert process.wait(timeout=60) == 3
