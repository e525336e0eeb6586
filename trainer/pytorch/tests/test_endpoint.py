"""Bounds, refusals and a whole transfer at the HTTP endpoint that workers ask for broadcasts."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import select
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from broadcast_kit import HOST, PATIENCE, Later, Peer, policy, same, weights

from uadt_trainer.endpoint import LIMIT, Endpoint
from uadt_trainer.transfer import (
    Transfer,
)


def post(endpoint: Endpoint, route: str, body: Any, token: str | None = None) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {endpoint.token if token is None else token}"}
    request = urllib.request.Request(endpoint.url + route, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture
def endpoint(transfer: Transfer) -> Iterator[Endpoint]:
    made = Endpoint(transfer, HOST)
    yield made
    made.close()


def wire(version: int) -> dict[str, Any]:
    return {"incarnation": 1, "version": version, "digest": f"{version:064x}"}


def test_a_transfer_over_http(endpoint: Endpoint) -> None:
    held = weights(3)
    endpoint.transfer.hold(policy(3), held, held)
    asked = {"server": "a", "policy": wire(3), "world_size": 2, "seconds": 30}
    status, joined = post(endpoint, "/join", asked)
    assert status == 200
    peer = Later(lambda: Peer(joined["init_info"]))
    group = {"group": joined["group"]}
    status, prepared = post(endpoint, "/prepare", group | {"policy": wire(3), "seconds": 30})
    assert status == 200
    got = Later(lambda: peer.result().receive(prepared["update_info"]))
    status, sent = post(endpoint, "/send", group | {"seconds": 30.5})
    assert (status, sent["bytes"] > 0) == (200, True)
    assert same(got.result(), held)
    assert post(endpoint, "/leave", group) == (200, {})
    status, answer = post(endpoint, "/send", group | {"seconds": 1})
    assert (status, answer["error"]["type"]) == (404, "GroupUnknownError")
    status, answer = post(endpoint, "/join", asked | {"policy": wire(4)})
    assert (status, answer["error"]["type"]) == (410, "PolicyGoneError")


def test_requests_that_are_refused(endpoint: Endpoint) -> None:
    good = {"group": "g", "seconds": 1}
    for route, body in (
        ("/send", good | {"more": 1}),
        ("/send", {"group": "g"}),
        ("/send", good | {"seconds": 0}),
        ("/send", good | {"seconds": 1e400}),
        ("/send", b"{"),
        ("/send", b"[]"),
        ("/send", b" " * (LIMIT + 1)),
        ("/join", {"server": "a", "policy": {"version": 1}, "world_size": 2, "seconds": 1}),
        ("/elsewhere", {}),
    ):
        status, answer = post(endpoint, route, body)
        assert (status, answer["error"]["type"]) == (400, "FrameError"), (route, body)
    for token in ("", "x", endpoint.token[:-1], endpoint.token + "é"):
        assert post(endpoint, "/send", good, token.encode().decode("latin-1"))[0] == 401
    with pytest.raises(urllib.error.HTTPError) as got:
        urllib.request.urlopen(endpoint.url + "/send", timeout=PATIENCE)
    assert got.value.code == 501  # GET
    got.value.close()


def trickle(endpoint: Endpoint, at_once: bytes, then: bytes) -> bytes:
    """Send bytes at once and then others one by one, far within every pause; return what comes until the end."""
    host, port = endpoint.url.removeprefix("http://").split(":")
    answer, end = b"", time.monotonic() + PATIENCE
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        connection.sendall(at_once)
        for byte in itertools.cycle(then):
            assert time.monotonic() < end, "the connection is still open"
            if select.select([connection], [], [], 0.01)[0]:
                try:
                    data = connection.recv(1 << 16)
                except ConnectionResetError:
                    return answer
                if not data:
                    return answer
                answer += data
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(bytes([byte]))
    raise AssertionError


def test_a_request_that_trickles_in_is_given_up(transfer: Transfer) -> None:
    endpoint = Endpoint(transfer, HOST, arrival=0.5)
    try:
        start = f"POST /send HTTP/1.0\r\nAuthorization: Bearer {endpoint.token}\r\n".encode()
        assert trickle(endpoint, b"", b"P") == b""
        assert trickle(endpoint, start, b"X-More: 1\r\n") == b""
        answer = trickle(endpoint, start + b"Content-Length: 60000\r\n\r\n{", b" ")
        assert answer.startswith(b"HTTP/1.0 408 ")
        assert b"did not arrive within 0.5 s" in answer
        assert post(endpoint, "/leave", {"group": "g"}) == (200, {})
    finally:
        endpoint.close()


def test_connections_above_the_cap_are_refused_at_once(transfer: Transfer) -> None:
    endpoint = Endpoint(transfer, HOST, arrival=PATIENCE, connections=2)
    host, port = endpoint.url.removeprefix("http://").split(":")
    try:
        held = [socket.create_connection((host, int(port)), PATIENCE) for _ in range(2)]  # accepted in this order
        with socket.create_connection((host, int(port)), PATIENCE) as third, third.makefile("rb") as answer:
            text = answer.read()
        assert text.startswith(b"HTTP/1.0 503 ")
        assert json.loads(text.partition(b"\r\n\r\n")[2])["error"]["message"] == "2 requests are being answered already"
        for connection in held:
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""  # the server has closed it
            connection.close()
        end = time.monotonic() + PATIENCE
        while (got := attempt(endpoint)) is None:  # its place is free a moment after it is closed
            assert time.monotonic() < end, "no place became free"
        assert got == (200, {})
    finally:
        endpoint.close()


def attempt(endpoint: Endpoint) -> tuple[int, dict[str, Any]] | None:
    """Post a request; None when the server has no place for it."""
    try:
        status, answer = post(endpoint, "/leave", {"group": "g"})
    except (ConnectionError, urllib.error.URLError):
        return None
    return None if status == 503 else (status, answer)


def test_bytes_of_any_kind_are_refused_and_harm_nothing(endpoint: Endpoint) -> None:
    seeds = [json.dumps({"group": "g", "seconds": 1, "policy": wire(1)}).encode(), b"\xff\x00", b"null", b"1" * 50]
    rng = random.Random(1)
    for _ in range(200):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        status, answer = post(endpoint, rng.choice(["/join", "/prepare", "/send"]), bytes(data))
        assert status in (400, 404, 410), (data, answer)
