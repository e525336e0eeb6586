"""Image bytes by digest from the run's blob server."""

from __future__ import annotations

import hashlib
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from .images import ImageError

ATTEMPTS = 4
LIMIT = 64 << 20  # bytes of one blob


@dataclass(frozen=True)
class BlobAddress:
    """Where the blob server is and what it must be told."""

    url: str
    token: str


class BlobClient:
    """Fetches and checks blobs. `find` returns the present address."""

    def __init__(self, find: Callable[[], BlobAddress], timeout: float = 30.0, pause: float = 0.05) -> None:
        self._find, self._timeout, self._pause = find, timeout, pause

    def fetch(self, digest: str) -> bytes:
        """Return the bytes of a digest; a server that fails is asked again a few times."""
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            message = f"{digest[:80]!r} is no SHA-256 digest"
            raise ImageError(message)
        failure: Exception | None = None
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self._pause * 2 ** (attempt - 1))
            try:
                data = self._get(digest)
            except urllib.error.HTTPError as error:
                error.close()
                failure = error
                if error.code < 500:
                    break
            except OSError as error:
                failure = error
            else:
                if hashlib.sha256(data).hexdigest() != digest:
                    message = f"image {digest}: the server sent other bytes"
                    raise ImageError(message)
                return data
        message = f"image {digest}: {failure}"
        raise ImageError(message) from failure

    def _get(self, digest: str) -> bytes:
        address = self._find()
        if not address.url.startswith(("http://", "https://")):
            message = f"blob server at {address.url!r}"
            raise ImageError(message)
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            f"{address.url}/blob/{digest}", headers={"Authorization": f"Bearer {address.token}"}
        )
        with urllib.request.urlopen(request, timeout=self._timeout) as response:  # noqa: S310
            data = response.read(LIMIT + 1)
        if len(data) > LIMIT:
            message = f"image {digest}: more than {LIMIT} bytes"
            raise ImageError(message)
        return data
