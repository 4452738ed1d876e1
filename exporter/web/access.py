"""Access to the HTTP server: the rate limit of requests, and users with their passwords."""

from __future__ import annotations

import asyncio
import binascii
import os
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from hashlib import blake2b
from math import ceil
from typing import Final

import bcrypt
from aiohttp import web

from exporter.secrets import Secret
from exporter.threads import SerialThread
from exporter.web.web_config import RateLimit, WebConfig

PROBES: Final = frozenset({"/-/healthy", "/-/ready"})

MAX_REMEMBERED: Final = 100
"""Right passwords that are remembered."""

MAX_CHECKS: Final = 64
"""Passwords that may wait to be checked; one takes some 70 ms at a cost of 10."""

# What bcrypt looks at: older versions of its library, and that of Go, cut the rest off.
_SIGNIFICANT: Final = 72

_REALM: Final = 'Basic realm="esms-exporter", charset="UTF-8"'

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def credentials(request: web.Request, scheme: str) -> str:
    """Return what the only `Authorization` header holds in this scheme; empty for another."""
    headers = request.headers.getall("Authorization", [])
    named, _, value = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    return value.strip() if named.lower() == scheme else ""


class TooManyChecksError(Exception):
    """Too many passwords are waiting to be checked."""


class Passwords:
    """Checks passwords against bcrypt hashes, which is slow on purpose, one at a time in a thread.

    Right ones are remembered under keyed hashes, so that a scrape does not pay each time. A name
    that is not known is checked against the hash of some user, so that it takes as long.

    Args:
        check: tells whether a password has a hash.
        max_checks: passwords that may wait to be checked.
    """

    def __init__(
        self, check: Callable[[bytes, bytes], bool] = bcrypt.checkpw, max_checks: int = MAX_CHECKS
    ) -> None:
        # A thread that the end of the process does not wait for; started before it is needed.
        self._thread = SerialThread("passwords")
        self._thread.submit(int)
        self._check = check
        self._max_checks = max_checks
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._key = os.urandom(32)
        self._right: OrderedDict[bytes, None] = OrderedDict()

    async def verify(self, users: Mapping[str, Secret], name: str, password: bytes) -> bool:
        """Tell whether a password is that of a user.

        Args:
            users: bcrypt hashes by name; at least one.
            name: the user that is claimed.
            password: in UTF-8.

        Raises:
            TooManyChecksError: it would take too long.
        """
        hashes = list(users.values())
        digest = self._digest(name.encode())
        # For an unknown name always the same one, of a cost that occurs.
        hashed = users.get(name) or hashes[int.from_bytes(digest[:8]) % len(hashes)]
        known_hash = hashed.reveal().encode()
        key = self._digest(name.encode(), known_hash, password)
        if self._remembers(key):
            return True
        if self._waiting >= self._max_checks:
            raise TooManyChecksError
        self._waiting += 1
        try:
            async with self._turn:
                if self._remembers(key):
                    return True  # it came several times at once
                significant = password[:_SIGNIFICANT]
                same = await self._thread.submit(lambda: self._check(significant, known_hash))
        finally:
            self._waiting -= 1
        if not same or name not in users:
            return False
        self._right[key] = None
        if len(self._right) > MAX_REMEMBERED:
            self._right.popitem(last=False)
        return True

    def close(self) -> None:
        """End the thread."""
        self._thread.close()

    def _remembers(self, key: bytes) -> bool:
        if found := key in self._right:
            self._right.move_to_end(key)
        return found

    def _digest(self, *parts: bytes) -> bytes:
        digest = blake2b(key=self._key)
        for part in parts:
            # With its length, so that no two sequences of parts look the same.
            digest.update(len(part).to_bytes(8) + part)
        return digest.digest()


class _TokenBucket:
    def __init__(self, limit: RateLimit, now: float) -> None:
        self.limit = limit
        self._tokens = float(limit.burst)
        self._filled_at = now

    def take(self, now: float) -> bool:
        added = (now - self._filled_at) / self.limit.interval
        self._tokens, self._filled_at = min(self.limit.burst, self._tokens + added), now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Access:
    """Decides which requests are answered.

    Args:
        open_paths: paths that need no password and are not limited.
        token_paths: prefixes of paths that ask for credentials of their own.
        route_prefix: what all of these paths begin with.
        passwords: checks them.
        clock: monotonic seconds.

    Attributes:
        config: the web configuration in force.
    """

    def __init__(
        self,
        open_paths: Collection[str],
        token_paths: tuple[str, ...],
        route_prefix: str,
        passwords: Passwords,
        clock: Callable[[], float],
    ) -> None:
        self._open_paths = open_paths
        self._token_paths = token_paths
        self._route_prefix = route_prefix
        self._passwords = passwords
        self._clock = clock
        self._bucket: _TokenBucket | None = None
        self.config = WebConfig()

    def configure(self, config: WebConfig) -> None:
        """Apply another configuration; a limit that stays the same continues."""
        self.config = config
        if config.rate_limit is None:
            self._bucket = None
        elif self._bucket is None or self._bucket.limit != config.rate_limit:
            self._bucket = _TokenBucket(config.rate_limit, self._clock())

    async def answer(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Answer a request if it has access.

        Raises:
            web.HTTPException: it has none.
        """
        # As the router has understood it, so that no spelling of a path gets around this.
        resource = request.match_info.route.resource
        path = resource.canonical.removeprefix(self._route_prefix) if resource else ""
        if path in self._open_paths:
            return await handler(request)
        if self._bucket is not None and not self._bucket.take(self._clock()):
            wait = str(ceil(self._bucket.limit.interval))
            raise web.HTTPTooManyRequests(text="Too Many Requests\n", headers={"Retry-After": wait})
        if self.config.users and not path.startswith(self._token_paths):
            await self._check_password(credentials(request, "basic"))
        return await handler(request)

    async def _check_password(self, shown: str) -> None:
        try:
            name, colon, password = b64decode(shown, validate=True).partition(b":")
            # bcrypt knows no NUL.
            good = bool(colon) and b"\0" not in password
            users = self.config.users
            good = good and await self._passwords.verify(users, name.decode(), password)
        except (binascii.Error, ValueError):
            good = False
        except TooManyChecksError:
            raise web.HTTPServiceUnavailable(
                text="try again later\n", headers={"Retry-After": "1"}
            ) from None
        if not good:
            raise web.HTTPUnauthorized(text="Unauthorized\n", headers={"WWW-Authenticate": _REALM})

    def close(self) -> None:
        """Check no more passwords."""
        self._passwords.close()
