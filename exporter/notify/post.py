"""One POST, and what came of it."""

from __future__ import annotations

import asyncio
import ssl
import time
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum, auto
from http import HTTPStatus
from typing import Final, NamedTuple

import aiohttp
from yarl import URL

import exporter
from exporter.config.notify import NotifyConfig
from exporter.esms.answers import read_refusal
from exporter.esms.client import RenewedSession, translate
from exporter.esms.codes import Outcome
from exporter.metrics.targets import PostOutcome
from exporter.notify.addresses import ForbiddenAddressError, guarded_socket
from exporter.notify.event import CONTENT_TYPE, headers, signing_key
from exporter.notify.names import Resolver

_ENOUGH: Final = 16 * 1024
"""Bytes of an answer that are read, so that its connection can be used again: nobody needs them."""

_HEADERS: Final = {
    "Accept-Encoding": "identity",  # what is not compressed cannot be a decompression bomb
    "Content-Type": CONTENT_TYPE,
    "User-Agent": f"esms-exporter/{exporter.__version__}",
}

_ABOUT_THE_EVENT: Final = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.CONFLICT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)
"""What refuses one event, but may take others."""

_FAILURES: Final = {
    Outcome.TIMEOUT: PostOutcome.TIMEOUT,
    Outcome.CONNECTION: PostOutcome.CONNECTION,
    Outcome.TLS: PostOutcome.TLS,
}


class Fate(Enum):
    """What a request means for the notification that it carried."""

    DELIVERED = auto()
    REFUSED = auto()  # it is not wanted, ever
    AGAIN = auto()


class Reply(NamedTuple):
    """What came of a request.

    Attributes:
        outcome: for the metrics.
        fate: of the notification.
        well: whether the target answers as it should; where not, the circuit breaker counts it.
        wait: seconds for which the target asks not to be sent anything, if it does.
        problem: what is wrong, for the log; nothing of it is secret.
    """

    outcome: PostOutcome
    fate: Fate
    well: bool = False
    wait: float | None = None
    problem: str = ""


class Poster:
    """Sends events to one target, over connections of its own.

    Redirects are not followed, certificates are verified, and where a name leads is looked at when
    it is connected to, see `exporter.notify.addresses`.

    Args:
        config: of the target.
        tls: see `exporter.esms.client.Client`.

    Must be made inside a running loop, and closed.
    """

    def __init__(self, config: NotifyConfig, *, tls: ssl.SSLContext | bool = True) -> None:
        url = URL(config.url.reveal())
        self._url = url.with_user(None)
        # Not left to aiohttp, which cannot encode most letters that a password may hold.
        shown = b64encode(f"{url.user or ''}:{url.password or ''}".encode()).decode()
        known = url.user is not None or url.password is not None
        self._auth = {"Authorization": f"Basic {shown}"} if known else {}
        self._key = signing_key(config.secret)
        self._timeout = config.timeout
        self._names = Resolver()

        def make() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=config.max_concurrency,
                    resolver=self._names,
                    socket_factory=guarded_socket,
                    ssl=tls,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=_HEADERS,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                auto_decompress=False,
            )

        self._session = RenewedSession(make, config.timeout)

    async def post(self, event: str, body: str) -> Reply:
        """Send an event once. Never raises what is the target's or the network's doing."""
        data = body.encode()
        signed = headers(self._key, event, time.time(), data)
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._session.get().post(
                    self._url, data=data, headers={**signed, **self._auth}, allow_redirects=False
                )
        except Exception as error:  # noqa: BLE001 - its text and traceback may hold the URL
            self._session.distrust()
            return _failed(error)
        reply = answered(response.status, response.headers, time.time())
        await self._finish(response)
        if not reply.well:
            self._session.distrust()
        return reply

    async def close(self) -> None:
        """Close the connections; requests under way fail."""
        await self._session.close()
        await self._names.close()

    async def _finish(self, response: aiohttp.ClientResponse) -> None:
        """Read what is left of an answer, if that is little and there soon."""
        with suppress(Exception):  # the status has said everything
            async with asyncio.timeout(1.0):
                left = _ENOUGH
                while left > 0 and (chunk := await response.content.readany()):
                    left -= len(chunk)
                if response.content.at_eof():
                    response.release()
        response.close()


def _failed(error: Exception) -> Reply:
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(
        error.os_error, ForbiddenAddressError
    ):
        # The message names no address: what a name resolves to may be nobody's business.
        problem = str(error.os_error)
        return Reply(PostOutcome.FORBIDDEN, Fate.AGAIN, problem=problem)
    told = translate(error)
    outcome = _FAILURES.get(told.outcome, PostOutcome.BAD_RESPONSE)
    return Reply(outcome, Fate.AGAIN, problem=str(told))


def answered(status: int, headers: Mapping[str, str], now: float) -> Reply:
    """Return what an answer means.

    Args:
        status: of HTTP.
        headers: of the answer.
        now: Unix time.
    """
    if 200 <= status < 300:
        return Reply(PostOutcome.OK, Fate.DELIVERED, well=True)
    problem = f"the answer has the status {status}"
    if status == HTTPStatus.GONE:
        return Reply(PostOutcome.GONE, Fate.REFUSED, well=True, problem=problem)
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        said = read_refusal(status, headers.get("Retry-After"), now, headers.get("Date"))
        return Reply(PostOutcome.THROTTLED, Fate.AGAIN, wait=said.retry_after, problem=problem)
    well = status in _ABOUT_THE_EVENT
    return Reply(PostOutcome.HTTP_ERROR, Fate.AGAIN, well=well, problem=problem)
