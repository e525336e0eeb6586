"""The trainer process: `python -m uadt_trainer` for one rank, or under torchrun for many."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from transformers.utils.logging import disable_progress_bar

from .bus import BusOptions
from .engine import EngineOptions
from .ranks import CollectiveError, Ranks
from .server import Server


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line; rank and world come from the environment, as torchrun sets them."""
    p = argparse.ArgumentParser(prog="uadt-trainer", description=__doc__)
    p.add_argument("--bus", required=True, help="nats:// address of the run's bus")
    # torchrun takes --run, wherever it is, for the beginning of an option of its own, and ends.
    p.add_argument("--run-name", "--run", dest="run", required=True, help="name of the run")
    p.add_argument("--work", required=True, type=Path, help="directory for published policies, seen by the servers")
    p.add_argument("--credentials", type=Path, help="file with the trainer's nkey seed")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: cuda where there is one)")
    p.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    p.add_argument(
        "--sharding",
        default="auto",
        choices=("auto", "none", "full"),
        help="full: ranks cut weights, gradients and optimizer state between them; "
        "none: each holds all of it (default: full on GPUs)",
    )
    p.add_argument("--threads", type=int, default=0, help="CPU threads of PyTorch (default: its own choice)")
    p.add_argument("--instance", default="", help="name of this set of ranks (default: a random one)")
    p.add_argument("--rendezvous", default="env://", help="where ranks meet, as init_process_group takes it")
    p.add_argument("--timeout", type=float, default=600.0, help="seconds that a collective may take")
    host = "of this host, where workers and servers ask for broadcasts (default: the one that faces the bus)"
    p.add_argument("--address", default="", help=host)
    p.add_argument("--watch-stdin", action="store_true", help="end when standard input is closed")
    return p.parse_args(arguments)


def device_of(name: str) -> torch.device:
    """Choose the device of this rank."""
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def join(a: argparse.Namespace, device: torch.device) -> tuple[Ranks, str]:
    """Meet the other ranks and agree on the name of the set."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    name = a.instance or uuid.uuid4().hex
    if world == 1:
        return Ranks(device=device), name
    backend = "nccl" if device.type == "cuda" else "gloo"
    limit = timedelta(seconds=a.timeout)
    dist.init_process_group(backend, init_method=a.rendezvous, rank=rank, world_size=world, timeout=limit)
    letters = torch.zeros(128, dtype=torch.uint8)
    letters[: len(name)] = torch.tensor(list(name.encode()), dtype=torch.uint8)
    letters = letters.to(device)
    dist.broadcast(letters, 0)
    return Ranks(rank, world, device), bytes(letters.tolist()).rstrip(b"\0").decode()


def facing(bus: str) -> str:
    """Return the IPv4 address of this host on the way to the bus, or that of loopback; nothing is sent."""
    url = urlsplit(bus if "://" in bus else f"nats://{bus}")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((url.hostname or "", url.port or 4222))
            return probe.getsockname()[0]
    except OSError:
        return "127.0.0.1"


def inbox(seed: str) -> str:
    """Return the prefix of answers that the bus allows to the role with this seed."""
    if not seed:
        return "_INBOX"
    import nkeys

    return f"_INBOX_{nkeys.from_seed(seed.encode()).public_key.decode()}"


def main(arguments: list[str] | None = None) -> int:
    """Serve one rank until it is told to stop."""
    a = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    disable_progress_bar()
    if a.threads:
        torch.set_num_threads(a.threads)
    stop = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: stop.set())
    if a.watch_stdin:
        # A terminal sends its interrupt to us too, but only whoever started us knows when the run is over.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_watch, name="stdin", daemon=True).start()
    device = device_of(a.device)
    ranks, instance = join(a, device)
    dtype = a.dtype if a.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    seed = a.credentials.read_text().strip() if a.credentials else ""
    sharding = a.sharding == "full" or a.sharding == "auto" and device.type == "cuda"
    engine = EngineOptions(device, getattr(torch, dtype), a.work.resolve(), fetch=_nothing, sharding=sharding)
    server = Server(
        BusOptions(a.bus, a.run, ranks.rank, seed, inbox(seed)), engine, ranks, instance, a.address or facing(a.bus)
    )
    where = (os.getpid(), instance, device, dtype)
    logging.info("rank %d of %d, process %d, instance %s, %s, %s", ranks.rank, ranks.world, *where)
    try:
        server.run(connect=30.0, stop=stop)
    except CollectiveError:
        os._exit(1)  # it is answered and logged; taking the group apart in order would wait for the others again
    if ranks.world > 1:
        dist.destroy_process_group()
    return 0


def _nothing(digest: str) -> bytes:
    message = f"image {digest}: no store"
    raise OSError(message)


def _watch() -> None:
    """End the process, in whatever it is, when the one that started it is gone."""
    while os.read(0, 4096):
        pass
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())
