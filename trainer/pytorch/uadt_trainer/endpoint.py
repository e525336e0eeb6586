"""The HTTP endpoint at which workers ask for broadcasts: POST /join, /prepare, /send and /leave, JSON both ways.

It answers only who knows its token. The token travels in the clear: beyond one
host the network must be trusted, as NCCL's own traffic demands anyway. Who does
not know the token can hold a thread no longer than a request may take to arrive,
and no more threads than there may be connections.
"""

from __future__ import annotations

import contextlib
import hmac
import io
import json
import logging
import math
import secrets
import socket
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .communicator import BroadcastError
from .frames import Fields, FrameError
from .transfer import BroadcastTimeoutError, GroupUnknownError, PolicyGoneError, PolicyId, Transfer

LIMIT = 1 << 16  # bytes of a request
ARRIVAL = 10.0  # seconds from a connection to its whole request, and for an answer to be taken
CONNECTIONS = 256  # at a time; a worker has one for each server of its own

log = logging.getLogger("uadt_trainer")

STATUS = (
    (GroupUnknownError, HTTPStatus.NOT_FOUND),
    (PolicyGoneError, HTTPStatus.GONE),
    (BroadcastTimeoutError, HTTPStatus.GATEWAY_TIMEOUT),
    (FrameError, HTTPStatus.BAD_REQUEST),
)


class Endpoint:
    """Serves one Transfer until it is closed. url and token are what clients need."""

    def __init__(self, transfer: Transfer, host: str, arrival: float = ARRIVAL, connections: int = CONNECTIONS) -> None:
        self.token = secrets.token_hex(32)
        self.transfer = transfer
        self._http = _Server(host, self, arrival, connections)
        self.url = f"http://{host}:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, name="broadcasts", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more requests and end all groups."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        self.transfer.close()

    def answer(self, route: str, body: Fields) -> dict[str, Any]:
        """Carry out one request."""
        match route:
            case "/join":
                server, policy = body.take("server", str), _policy(body)
                world, seconds = body.take("world_size", int), _seconds(body)
                body.done()
                return self.transfer.join(server, policy, world, seconds)
            case "/prepare":
                group, policy, seconds = body.take("group", str), _policy(body), _seconds(body)
                body.done()
                return self.transfer.prepare(group, policy, seconds)
            case "/send":
                group, seconds = body.take("group", str), _seconds(body)
                body.done()
                return self.transfer.send(group, seconds)
            case "/leave":
                group = body.take("group", str)
                body.done()
                return self.transfer.leave(group)
        message = f"no route {route[:80]!r}"
        raise FrameError(message)


def _policy(body: Fields) -> PolicyId:
    f = Fields("policy", body.take("policy", dict))
    policy = PolicyId(f.take("incarnation", int), f.take("version", int), f.take("digest", str))
    f.done()
    return policy


def _seconds(body: Fields) -> float:
    seconds = body.take("seconds", float)
    if not (math.isfinite(seconds) and seconds > 0):
        message = f"a limit of {seconds} seconds"
        raise FrameError(message)
    return seconds


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = CONNECTIONS  # all servers join at the same time

    def __init__(self, host: str, endpoint: Endpoint, arrival: float, connections: int) -> None:
        self.endpoint, self.arrival, self._connections = endpoint, arrival, connections
        self._places = threading.BoundedSemaphore(connections)
        super().__init__((host, 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer on a thread, or refuse at once when there are too many."""
        if not self._places.acquire(blocking=False):
            self._refuse(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room for another."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def _refuse(self, request: socket.socket) -> None:
        text = f"{self._connections} requests are being answered already"
        body = json.dumps(_failure("ConnectionRefusedError", text)).encode()
        request.setblocking(False)  # noqa: FBT003 - the name of the argument is the method's
        with contextlib.suppress(OSError):
            request.send(b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        self.shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say that a client went away; it is the client's business."""
        log.info("a request from %s broke off", client_address, exc_info=True)


class _Arriving(io.RawIOBase):
    """Reads a socket until a deadline, however often bytes come."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection, self._end = connection, time.monotonic() + seconds

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what there is; TimeoutError after the deadline."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def setup(self) -> None:
        """Bound the time that the whole request may take to arrive."""
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Arriving(self.connection, self.server.arrival))

    def do_POST(self) -> None:  # noqa: N802 - the name is http.server's
        """Answer one request."""
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.server.endpoint.token.encode()):
            self._reply(HTTPStatus.UNAUTHORIZED, _failure("PermissionError", "the token is missing or wrong"))
            return
        try:
            body = self._body()
        except TimeoutError:
            text = f"the request did not arrive within {self.server.arrival:g} s"
            self._reply(HTTPStatus.REQUEST_TIMEOUT, _failure("TimeoutError", text))
            return
        except FrameError as error:
            self._reply(HTTPStatus.BAD_REQUEST, _failure(type(error).__name__, str(error)))
            return
        self._answer(body)

    def _answer(self, body: Fields) -> None:
        try:
            self._reply(HTTPStatus.OK, self.server.endpoint.answer(self.path, body))
        except (BroadcastError, FrameError) as error:
            status = next((s for kind, s in STATUS if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)
            self._reply(status, _failure(type(error).__name__, str(error)))
        except Exception as error:  # the trainer goes on without this server
            log.exception("%s failed", self.path)
            self._reply(HTTPStatus.INTERNAL_SERVER_ERROR, _failure(type(error).__name__, str(error)))

    def _body(self) -> Fields:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LIMIT:
            message = f"a body of {length[:20]!r} bytes, want at most {LIMIT}"
            raise FrameError(message)
        try:
            data = json.loads(self.rfile.read(int(length)))
        except ValueError as error:
            message = f"the body is no JSON: {error}"
            raise FrameError(message) from error
        if not isinstance(data, dict):
            message = "the body is no JSON object"
            raise FrameError(message)
        return Fields(self.path, data)

    def _reply(self, status: HTTPStatus, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.connection.settimeout(self.server.arrival)  # for all of what follows
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is http.server's
        """Say nothing of each request."""


def _failure(kind: str, message: str) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message}}
