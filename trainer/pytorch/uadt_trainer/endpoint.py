"""The HTTP endpoint at which workers ask for broadcasts: POST /join, /prepare, /send and /leave, JSON both ways.

It answers only who knows its token. The token travels in the clear: beyond one
host the network must be trusted, as NCCL's own traffic demands anyway.
"""

from __future__ import annotations

import hmac
import json
import logging
import math
import secrets
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .communicator import BroadcastError
from .frames import Fields, FrameError
from .transfer import BroadcastTimeoutError, GroupUnknownError, PolicyGoneError, PolicyId, Transfer

LIMIT = 1 << 16  # bytes of a request
IDLE = 30.0  # seconds that a request may pause while it arrives

log = logging.getLogger("uadt_trainer")

STATUS = (
    (GroupUnknownError, HTTPStatus.NOT_FOUND),
    (PolicyGoneError, HTTPStatus.GONE),
    (BroadcastTimeoutError, HTTPStatus.GATEWAY_TIMEOUT),
    (FrameError, HTTPStatus.BAD_REQUEST),
)


class Endpoint:
    """Serves one Transfer until it is closed. url and token are what clients need."""

    def __init__(self, transfer: Transfer, host: str) -> None:
        self.token = secrets.token_hex(32)
        self.transfer = transfer
        self._http = _Server((host, 0), _Handler)
        self._http.endpoint = self
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
    endpoint: Endpoint

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say that a client went away; it is the client's business."""
        log.info("a request from %s broke off", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = IDLE

    def do_POST(self) -> None:  # noqa: N802 - the name is http.server's
        """Answer one request."""
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.server.endpoint.token.encode()):
            self._reply(HTTPStatus.UNAUTHORIZED, _failure("PermissionError", "the token is missing or wrong"))
            return
        try:
            self._reply(HTTPStatus.OK, self.server.endpoint.answer(self.path, self._body()))
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
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is http.server's
        """Say nothing of each request."""


def _failure(kind: str, message: str) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message}}
