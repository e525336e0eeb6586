"""Frames, strict JSON, checksums, shards and images from the blob server."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pytest
from conftest import batch, options, shard

from uadt_trainer import commands
from uadt_trainer.blobs import ATTEMPTS, BlobAddress, BlobClient
from uadt_trainer.crc32c import checksum, crc32c
from uadt_trainer.frames import COMMAND, Fields, FrameError, decode, encode
from uadt_trainer.images import ImageError
from uadt_trainer.types import Shard


def slow_crc(data: bytes) -> int:
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def test_crc32c() -> None:
    # RFC 3720, appendix B.4.
    assert crc32c(b"\0" * 32) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert checksum(b"123456789") == "e3069283"
    rng = np.random.default_rng(0)
    for size in (0, 1, 8191, 8192, 8193, 20000):
        data = rng.bytes(size)
        assert crc32c(data) == slow_crc(data), size


def test_frames_survive_the_wire() -> None:
    tensors = {"a": np.array([1.5, np.nan], dtype=np.float32), "empty": np.zeros(0, dtype=np.int32)}
    frame = decode(COMMAND, encode(COMMAND, {"x": [1, "y"]}, tensors))
    assert frame.message == {"x": [1, "y"]}
    np.testing.assert_array_equal(frame.tensor("a", np.float32), tensors["a"])
    assert len(frame.tensor("empty", np.int32)) == 0
    for name, dtype in (("b", np.float32), ("a", np.int32)):
        with pytest.raises(FrameError, match=name):
            frame.tensor(name, dtype)
    with pytest.raises(FrameError, match="want other"):
        decode("other", encode(COMMAND, {}, {}))


def test_no_bytes_crash_the_reader() -> None:
    good = encode(COMMAND, {"version": 1}, {"a": np.arange(6, dtype=np.float32)})
    rng = np.random.default_rng(1)
    for _ in range(400):
        data = bytearray(good[: rng.integers(0, len(good) + 1)])
        for _ in range(rng.integers(0, 4)):
            if data:
                data[rng.integers(0, len(data))] = rng.integers(0, 256)
        try:
            decode(COMMAND, bytes(data))
        except FrameError:
            continue


def test_fields_are_strict() -> None:
    f = Fields("it", {"a": 1, "b": True, "c": [1, 2], "d": 2})
    assert f.take("a", float) == 1.0
    with pytest.raises(FrameError, match="it has no z"):
        f.take("z", int)
    with pytest.raises(FrameError, match="it.b is bool"):
        f.take("b", int)
    assert f.numbers("c") == (1, 2)
    with pytest.raises(FrameError, match="unknown keys"):
        f.done()
    with pytest.raises(FrameError, match="want an object"):
        Fields("it", [1])


def load_frame(s: Shard, **changes: object) -> tuple[bytes, dict]:
    """Render a load command as the coordinator does."""
    traces = [t for g in s.groups for t in g.traces]
    tensors = {
        "prompt_tokens": np.concatenate([g.prompt for g in s.groups]),
        "prompt_offsets": np.cumsum([0, *(len(g.prompt) for g in s.groups)]).astype(np.int32),
        "tokens": np.concatenate([t.tokens for t in traces]),
        "offsets": np.cumsum([0, *(len(t.tokens) for t in traces)]).astype(np.int32),
        "mask": np.concatenate([t.mask for t in traces]).astype(np.uint8),
        "rollout_logprobs": np.concatenate([t.rollout_logprobs for t in traces]),
    }
    body = {
        "step": s.step,
        "micro_batches": s.micro_batches,
        "groups": [{"id": g.id, "index": g.index, "images": list(g.images), "traces": len(g.traces)} for g in s.groups],
        "parts": [[p.micro_batch, p.group, p.start, p.stop] for p in s.parts],
    }
    for name, value in changes.items():
        (tensors if name in tensors else body)[name] = value
    return encode(COMMAND, body, tensors), body


def read(data: bytes) -> Shard:
    frame = decode(COMMAND, data)
    return commands.read_shard(frame, Fields("load", frame.message))


def test_shards_survive_the_wire(store) -> None:
    want = shard(3, batch(store, 1), "traces")
    got = read(load_frame(want)[0])
    assert (got.step, got.parts, got.micro_batches) == (want.step, want.parts, want.micro_batches)
    for a, b in zip(got.groups, want.groups, strict=True):
        assert (a.id, a.images, a.index) == (b.id, b.images, b.index)
        np.testing.assert_array_equal(a.prompt, b.prompt)
        for s, t in zip(a.traces, b.traces, strict=True):
            np.testing.assert_array_equal(s.tokens, t.tokens)
            np.testing.assert_array_equal(s.mask, t.mask)
            np.testing.assert_array_equal(s.rollout_logprobs, t.rollout_logprobs)
    absent = np.full(sum(len(t.tokens) for g in want.groups for t in g.traces), np.nan, dtype=np.float32)
    got = read(load_frame(want, rollout_logprobs=absent)[0])
    assert all(t.rollout_logprobs is None for g in got.groups for t in g.traces)


def test_shards_that_do_not_add_up_are_refused(store) -> None:
    s = shard(1, batch(store, 1))
    heads = load_frame(s)[1]["groups"]
    for words, change in {
        "offsets of tokens": {"offsets": np.array([0, 5], dtype=np.int32)},
        "offsets of prompt_tokens": {"prompt_offsets": np.array([1, 2, 3, 4], dtype=np.int32)},
        "offsets of mask": {"mask": np.zeros(3, dtype=np.uint8)},
        "3 prompts for 2 groups": {"groups": heads[:2]},
        "groups have 8 traces or more, the frame 7": {"groups": [*heads[:2], heads[2] | {"traces": 3}]},
        "groups have 6 traces, the frame 7": {"groups": [*heads[:2], heads[2] | {"traces": 1}]},
        "parts are lists": {"parts": [[0, 1]]},
        "unknown keys": {"more": 1},
        "group has unknown keys": {"groups": [*heads[:2], heads[2] | {"name": ""}]},
        "mask is int32": {"mask": np.zeros(3, dtype=np.int32)},
    }.items():
        with pytest.raises(FrameError, match=words):
            read(load_frame(s, **change)[0])


def test_options_survive_the_wire(store) -> None:
    want = options(batch(store, 1), kl="k3", kl_coef=0.04, banned=(3, 4), covariance_kind="clip", grad_clip=1)
    body = json.loads(json.dumps(asdict(want)))
    assert commands.read_options(Fields("step", {"options": body})) == want
    for change in ({"loss": "reinforce"}, {"kl": "k1"}, {"clip_low": "0.2"}, {"more": 1}):
        with pytest.raises(FrameError):
            commands.read_options(Fields("step", {"options": body | change}))
    with pytest.raises(FrameError, match="no temperature"):
        commands.read_options(Fields("step", {"options": {k: v for k, v in body.items() if k != "temperature"}}))


@pytest.fixture
def server() -> Iterator[tuple[str, dict]]:
    """A blob server: status and bytes by path, and how often each was asked for."""
    content: dict = {"asked": []}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content["asked"].append((self.path, self.headers.get("Authorization")))
            status, data = content.get(self.path, (404, b""))
            if isinstance(status, list):
                status = status.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}", content
    made.shutdown()
    thread.join()
    made.server_close()


def test_blobs_are_fetched_checked_and_asked_for_again(server) -> None:
    url, content = server
    data = b"an image"
    digest = hashlib.sha256(data).hexdigest()
    client = BlobClient(lambda: BlobAddress(url, "secret"), timeout=5, pause=0)
    content[f"/blob/{digest}"] = ([500, 503, 200], data)
    assert client.fetch(digest) == data
    assert content["asked"] == [(f"/blob/{digest}", "Bearer secret")] * 3
    content[f"/blob/{digest}"] = (200, b"another")
    with pytest.raises(ImageError, match="other bytes"):
        client.fetch(digest)
    with pytest.raises(ImageError, match="404"):
        client.fetch("0" * 64)
    content["asked"].clear()
    content[f"/blob/{digest}"] = (500, b"")
    with pytest.raises(ImageError, match="500"):
        client.fetch(digest)
    assert len(content["asked"]) == ATTEMPTS
    for bad in ("../../etc/passwd", "A" * 64, ""):
        with pytest.raises(ImageError, match="no SHA-256"):
            client.fetch(bad)
    for address in ("file:///etc", ""):
        with pytest.raises(ImageError, match="blob server at"):
            BlobClient(lambda a=address: BlobAddress(a, ""), pause=0).fetch(digest)
