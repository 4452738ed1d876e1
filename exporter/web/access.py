"""Access to the HTTP server: passwords, slots and the rate limit."""

from __future__ import annotations

import asyncio
import os
import time
from base64 import b64decode
from collections.abc import Callable, Mapping
from hashlib import blake2b
from math import ceil
from typing import Final, Literal

import bcrypt
from aiohttp import web

from exporter.app import App
from exporter.config import Config
from exporter.secrets import Secret
from exporter.threads import SerialThread
from exporter.web.web_config import RateLimit

# bcrypt uses only the first 72 bytes of a password. The library refuses longer ones, but its older
# versions and Go's ignore the rest.
_SIGNIFICANT: Final = 72

_REALM: Final = 'Basic realm="esms-exporter", charset="UTF-8"'

BEARER: Final = 'Bearer realm="esms-exporter"'
"""The challenge for a token, in the header `WWW-Authenticate`."""


def refusal(kind: type[web.HTTPError], text: str, seconds: float) -> web.HTTPError:
    """Return the response to a request that the client should repeat after some seconds."""
    return kind(text=f"{text}\n", headers={"Retry-After": str(ceil(seconds))})


def configuration(app: App) -> Config:
    """Return the configuration; raise `HTTPServiceUnavailable` while the exporter starts."""
    if app.config is None:
        raise refusal(web.HTTPServiceUnavailable, "the exporter is starting", 1)
    return app.config


def credentials(request: web.Request, scheme: str) -> str:
    """Return the credentials of the only `Authorization` header; empty for another scheme."""
    headers = request.headers.getall("Authorization", [])
    named, _, value = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    return value.strip() if named.lower() == scheme else ""


class Slots(asyncio.Semaphore):
    """Limits concurrent requests of a kind, and refuses further ones."""

    async def acquire(self) -> Literal[True]:
        """Take a slot; raise `HTTPServiceUnavailable` if all are in use."""
        if self.locked():
            raise refusal(web.HTTPServiceUnavailable, "try again later", 1)
        return await super().acquire()


class Passwords:
    """Checks passwords against bcrypt hashes in a thread, one at a time.

    The last right password of each user is remembered as a keyed hash, so that a scrape needs no
    bcrypt. An unknown name is checked against the hash of another user, so that the response takes
    as long.

    Args:
        check: returns whether a password matches a hash; takes some 70 ms at a cost of 10.
        max_checks: limit of passwords that wait to be checked.
    """

    def __init__(
        self, check: Callable[[bytes, bytes], bool] = bcrypt.checkpw, max_checks: int = 64
    ) -> None:
        # Started early, so that the first check is fast; the process can exit while it runs.
        self._thread = SerialThread("passwords")
        self._thread.submit(int)
        self._check = check
        self._checks = Slots(max_checks)
        self._turn = asyncio.Lock()
        self._key = os.urandom(32)
        self._right: dict[str, bytes] = {}  # digests by name

    async def authenticate(self, users: Mapping[str, Secret], request: web.Request) -> None:
        """Check the user name and password of a request (RFC 7617).

        Raises:
            web.HTTPUnauthorized: the name or the password is missing or wrong.
            web.HTTPServiceUnavailable: too many passwords wait to be checked.
        """
        try:
            shown = b64decode(credentials(request, "basic"), validate=True)
            name, colon, password = shown.partition(b":")
            # bcrypt rejects NUL.
            good = bool(colon) and b"\0" not in password
            good = good and await self._verify(users, name.decode(), password)
        except ValueError:
            good = False
        if not good:
            raise web.HTTPUnauthorized(text="Unauthorized\n", headers={"WWW-Authenticate": _REALM})

    async def _verify(self, users: Mapping[str, Secret], name: str, password: bytes) -> bool:
        hashes = list(users.values())
        # Pick the same hash for an unknown name each time: its cost shows in the response time.
        some = hashes[int.from_bytes(self._digest(name)[:8]) % len(hashes)]
        known_hash = users.get(name, some).reveal().encode()
        # With the name's presence: an earlier user may have had the same hash.
        digest = self._digest(name in users, known_hash, password)
        if self._right.get(name) == digest:
            return True
        async with self._checks, self._turn:
            if self._right.get(name) == digest:
                return True  # another request verified it meanwhile
            significant = password[:_SIGNIFICANT]
            same = await self._thread.submit(lambda: self._check(significant, known_hash))
        if same and name in users:
            self._right[name] = digest
            return True
        return False

    def close(self) -> None:
        self._thread.close()

    def _digest(self, *parts: str | bytes | bool) -> bytes:
        return blake2b(repr(parts).encode(), key=self._key).digest()


class TokenBucket:
    """Token bucket for requests."""

    def __init__(self, limit: RateLimit) -> None:
        self.limit = limit
        self._used_until = 0.0  # when the whole burst is available again

    def take(self) -> None:
        """Take a token; raise `HTTPTooManyRequests` if there is none."""
        now, limit = time.monotonic(), self.limit
        if self._used_until - now > (limit.burst - 1) * limit.interval:
            raise refusal(web.HTTPTooManyRequests, "Too Many Requests", limit.interval)
        self._used_until = max(now, self._used_until) + limit.interval
