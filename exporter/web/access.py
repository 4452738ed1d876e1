"""Who is let in: the limit of requests, and users with their passwords."""

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

_REALM: Final = 'Basic realm="esms-exporter", charset="UTF-8"'

CACHED: Final = 100
"""Verdicts that are remembered, of each kind."""

MAX_WAITING: Final = 64
"""Checks that may wait for their turn; one takes some 70 ms at a cost of 10."""

# What bcrypt looks at: older versions of its library, and that of Go, cut the rest off.
_SIGNIFICANT: Final = 72

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def credentials(request: web.Request, scheme: str) -> str:
    """Return what the one `Authorization` header shows in this scheme; empty where it does not."""
    headers = request.headers.getall("Authorization", [])
    named, _, shown = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    return shown.strip() if named.lower() == scheme else ""


class TooManyChecksError(Exception):
    """So many passwords wait to be checked that this one is not."""


class _Verdicts(OrderedDict[bytes, None]):
    """The latest passwords with one verdict."""

    def add(self, key: bytes) -> None:
        self[key] = None
        if len(self) > CACHED:
            self.popitem(last=False)

    def knows(self, key: bytes) -> bool:
        if found := key in self:
            self.move_to_end(key)
        return found


class Passwords:
    """Tells whether a password is that of a user.

    One is checked at a time, in a thread. Verdicts are remembered under keyed hashes, good ones
    apart from bad ones, so that no guessing drives good ones out. A name that is not known is
    checked against the hash of a user, so that it takes as long as one that is.
    """

    def __init__(self) -> None:
        # One that the end of the process does not wait for, and that is there before it is needed.
        self._worker = SerialThread("passwords")
        self._worker.submit(int)
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._secret = os.urandom(32)
        self._good, self._bad = _Verdicts(), _Verdicts()

    async def good(self, users: Mapping[str, Secret], name: str, password: bytes) -> bool:
        """Tell whether `password` is that of the user `name`.

        Args:
            users: bcrypt hashes by name; at least one.
            name: who it is said to be.
            password: in UTF-8.

        Raises:
            TooManyChecksError: the answer would take too long.
        """
        known = name in users
        hashed = users[name] if known else self._stand_in(users, name)
        key = self._key(name.encode("utf-8", "replace"), hashed.reveal().encode(), password)
        if (verdict := self._remembered(key)) is not None:
            return verdict
        if self._waiting >= MAX_WAITING:
            raise TooManyChecksError
        self._waiting += 1
        try:
            async with self._turn:
                if (verdict := self._remembered(key)) is not None:
                    return verdict  # it came several times at once
                significant, known_hash = password[:_SIGNIFICANT], hashed.reveal().encode()
                same = await self._worker.submit(lambda: bcrypt.checkpw(significant, known_hash))
        finally:
            self._waiting -= 1
        verdict = known and same
        (self._good if verdict else self._bad).add(key)
        return verdict

    def close(self) -> None:
        """End the thread, once it has checked what it is at."""
        self._worker.close()

    def _remembered(self, key: bytes) -> bool | None:
        if self._good.knows(key):
            return True
        return False if self._bad.knows(key) else None

    def _stand_in(self, users: Mapping[str, Secret], name: str) -> Secret:
        """Return a hash for a name that is not known: always the same, of a cost that occurs."""
        number = int.from_bytes(self._key(name.encode("utf-8", "replace"))[:8])
        return list(users.values())[number % len(users)]

    def _key(self, *parts: bytes) -> bytes:
        digest = blake2b(key=self._secret)
        for part in parts:
            # With its length, so that no two sequences of parts look the same.
            digest.update(len(part).to_bytes(8) + part)
        return digest.digest()


class _Bucket:
    """A token bucket: full at first, and filled again bit by bit."""

    def __init__(self, limit: RateLimit, now: float) -> None:
        self.limit = limit
        self._tokens = float(limit.burst)
        self._at = now

    def take(self, now: float) -> bool:
        limit = self.limit
        self._tokens = min(limit.burst, self._tokens + (now - self._at) / limit.interval)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Access:
    """Lets requests in.

    Args:
        open_paths: paths that need no password and are not limited.
        own_locks: beginnings of paths that ask for credentials of their own.
        route_prefix: what all of these paths begin with.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        open_paths: Collection[str],
        own_locks: tuple[str, ...],
        route_prefix: str,
        clock: Callable[[], float],
    ) -> None:
        self._route_prefix = route_prefix
        self._open_paths = open_paths
        self._own_locks = own_locks
        self._clock = clock
        self._passwords = Passwords()
        self._bucket: _Bucket | None = None
        self.config = WebConfig()

    def use(self, config: WebConfig) -> None:
        """Go over to another configuration; a limit that is the same goes on."""
        self.config = config
        if config.rate_limit is None:
            self._bucket = None
        elif self._bucket is None or self._bucket.limit != config.rate_limit:
            self._bucket = _Bucket(config.rate_limit, self._clock())

    async def answer(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Answer a request if it may come in.

        Raises:
            web.HTTPException: it may not.
        """
        # As the router has understood it, so that no spelling of a path gets around this.
        resource = request.match_info.route.resource
        path = resource.canonical.removeprefix(self._route_prefix) if resource else ""
        if path in self._open_paths:
            return await handler(request)
        if self._bucket is not None and not self._bucket.take(self._clock()):
            wait = str(ceil(self._bucket.limit.interval))
            raise web.HTTPTooManyRequests(text="Too Many Requests\n", headers={"Retry-After": wait})
        if self.config.users and not path.startswith(self._own_locks):
            try:
                good = await self._knows(credentials(request, "basic"))
            except TooManyChecksError:
                raise web.HTTPServiceUnavailable(
                    text="try again later\n", headers={"Retry-After": "1"}
                ) from None
            if not good:
                raise web.HTTPUnauthorized(
                    text="Unauthorized\n", headers={"WWW-Authenticate": _REALM}
                )
        return await handler(request)

    async def _knows(self, shown: str) -> bool:
        try:
            name, colon, password = b64decode(shown, validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return False
        # bcrypt knows no NUL.
        if not colon or b"\0" in password:
            return False
        users = self.config.users
        return await self._passwords.good(users, name.decode("utf-8", "replace"), password)

    def close(self) -> None:
        """Check no more passwords."""
        self._passwords.close()
