"""Who is let in: the limit of requests, and users with their passwords."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Awaitable, Callable, Collection
from math import ceil
from typing import Final

from aiohttp import web

from exporter.web.config_file import RateLimit, WebConfig
from exporter.web.passwords import Passwords, TooManyChecksError

PROBES: Final = frozenset({"/-/healthy", "/-/ready"})

_REALM: Final = 'Basic realm="esms-exporter", charset="UTF-8"'

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def credentials(request: web.Request, scheme: str) -> str:
    """Return what the one `Authorization` header shows in this scheme; empty where it does not."""
    headers = request.headers.getall("Authorization", [])
    named, _, shown = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    return shown.strip() if named.lower() == scheme else ""


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
