"""What access to the HTTP server depends on: limits of requests, and passwords of users."""

from __future__ import annotations

import asyncio
import os
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from math import ceil
from typing import Final, TypeAlias

import bcrypt
from aiohttp import web

from exporter.secrets import Secret
from exporter.threads import SerialThread
from exporter.web.web_config import RateLimit

MAX_REMEMBERED: Final = 100
"""Right passwords that are remembered."""

# What bcrypt looks at: older versions of its library, and that of Go, cut the rest off.
_SIGNIFICANT: Final = 72

_REALM: Final = 'Basic realm="esms-exporter", charset="UTF-8"'

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


def retry_after(seconds: float) -> dict[str, str]:
    """Return the header that says when a request may succeed."""
    return {"Retry-After": str(ceil(seconds))}


def credentials(request: web.Request, scheme: str) -> str:
    """Return what the only `Authorization` header holds in this scheme; empty for another."""
    headers = request.headers.getall("Authorization", [])
    named, _, value = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    return value.strip() if named.lower() == scheme else ""


class Slots:
    """Lets so many requests of a kind in at a time, and refuses further ones."""

    def __init__(self, count: int) -> None:
        self._free = count

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold a slot while the block runs.

        Raises:
            web.HTTPServiceUnavailable: all are taken.
        """
        if not self._free:
            raise web.HTTPServiceUnavailable(text="try again later\n", headers=retry_after(1))
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


class Passwords:
    """Checks passwords against bcrypt hashes, which is slow on purpose, one at a time in a thread.

    Right ones are remembered under keyed hashes, so that a scrape does not pay each time. A name
    that is not known is checked against the hash of some user, so that it takes as long.

    Args:
        check: tells whether a password has a hash; takes some 70 ms at a cost of 10.
        max_checks: passwords that may wait to be checked.
    """

    def __init__(
        self, check: Callable[[bytes, bytes], bool] = bcrypt.checkpw, max_checks: int = 64
    ) -> None:
        # A thread that the end of the process does not wait for; started before it is needed.
        self._thread = SerialThread("passwords")
        self._thread.submit(int)
        self._check = check
        self._checks = Slots(max_checks)
        self._turn = asyncio.Lock()
        self._key = os.urandom(32)
        self._right: dict[bytes, None] = {}  # the one that was used last is the last

    async def authenticate(self, users: Mapping[str, Secret], request: web.Request) -> None:
        """Return if a request shows the name of a user and the right password (RFC 7617).

        Args:
            users: bcrypt hashes by name; at least one.
            request: has them in its header `Authorization`.

        Raises:
            web.HTTPUnauthorized: it does not.
            web.HTTPServiceUnavailable: it would take too long to know.
        """
        try:
            shown = b64decode(credentials(request, "basic"), validate=True)
            name, colon, password = shown.partition(b":")
            # bcrypt knows no NUL.
            good = bool(colon) and b"\0" not in password
            good = good and await self._verify(users, name.decode(), password)
        except ValueError:
            good = False
        if not good:
            raise web.HTTPUnauthorized(text="Unauthorized\n", headers={"WWW-Authenticate": _REALM})

    async def _verify(self, users: Mapping[str, Secret], name: str, password: bytes) -> bool:
        hashes = list(users.values())
        # For an unknown name always the same one, of a cost that occurs.
        some = hashes[int.from_bytes(self._digest(name)[:8]) % len(hashes)]
        known_hash = users.get(name, some).reveal().encode()
        key = self._digest(name, known_hash, password)
        if self._remembers(key):
            return True
        with self._checks.take():
            async with self._turn:
                if self._remembers(key):
                    return True  # it came several times at once
                significant = password[:_SIGNIFICANT]
                same = await self._thread.submit(lambda: self._check(significant, known_hash))
        if not same or name not in users:
            return False
        self._right[key] = None
        if len(self._right) > MAX_REMEMBERED:
            del self._right[next(iter(self._right))]
        return True

    def close(self) -> None:
        """End the thread."""
        self._thread.close()

    def _remembers(self, key: bytes) -> bool:
        if known := key in self._right:
            self._right[key] = self._right.pop(key)
        return known

    def _digest(self, *parts: str | bytes) -> bytes:
        return blake2b(repr(parts).encode(), key=self._key).digest()


class TokenBucket:
    """Counts requests against a limit."""

    def __init__(self, limit: RateLimit) -> None:
        self.limit = limit
        self._used_until = 0.0  # when all of the burst is free again

    def take(self) -> bool:
        """Tell whether the next request is within the limit."""
        now, limit = time.monotonic(), self.limit
        if self._used_until - now > (limit.burst - 1) * limit.interval:
            return False
        self._used_until = max(now, self._used_until) + limit.interval
        return True
