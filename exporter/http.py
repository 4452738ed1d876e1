"""HTTP requests to other servers: the one place that sets up sessions and maps exceptions.

What aiohttp, asyncio and the system raise becomes one of the project's exceptions: see `_MAPPED`.
URLs and headers may hold credentials, so no message repeats the original's text.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, Self

import aiohttp
from yarl import URL

import exporter
from exporter.errors import (
    ConnectionFailedError,
    InvalidResponseError,
    RequestError,
    RequestTimeoutError,
    TLSError,
)
from exporter.secrets import Secret

MAX_BODY: Final = 64 * 1024
"""Bytes of a response body by default; one of the provider has some 200."""

MAX_AGES: Final = (300.0, 30.0)
"""Seconds for which connections are used: while responses are good, and after a bad one."""

# Beyond the 15 s at which an account is polled by default, so that a quiet account keeps its
# connection from poll to poll.
_KEEPALIVE: Final = 75.0

# In place of the time at which a request's time-out ends, once it has ended.
_EXPIRED: Final = -1.0

# Bytes and seconds spent on a body that is not needed, so that its connection can be used again.
_MAX_DISCARDED: Final = 16 * 1024
_DISCARD_TIMEOUT: Final = 1.0

_HEADERS: Final = {
    # What is not compressed cannot be a decompression bomb.
    "Accept-Encoding": "identity",
    "User-Agent": f"esms-exporter/{exporter.__version__}",
}


class Response(NamedTuple):
    """A response, read to its end; the body is as it came, compressed or not."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """Sends requests to one server, or a few, over connections that are kept and renewed.

    Redirects are not followed, because their target would be handed the credentials. Cookies are
    not kept, bodies are bounded and not decompressed, the proxies that the environment names are
    not used. Connections are renewed with age, and sooner when responses are bad: a name may have
    moved to another address while the old address still answers.

    Args:
        timeout: seconds from connecting to the last byte.
        headers: sent with every request.
        tls: verifies certificates; by default against the system's authorities, or those that the
            environment variable `SSL_CERT_FILE` names, as they were when the process started.
        proxy: the URL of an HTTP proxy.
        max_ages: see `MAX_AGES`.
        connector: further arguments of `aiohttp.TCPConnector`. A `RequestError` that its
            `socket_factory` raises is passed on.

    Must be made inside a running loop, and closed.
    """

    def __init__(
        self,
        timeout: float,
        headers: Mapping[str, str],
        *,
        tls: ssl.SSLContext | bool = True,
        proxy: Secret | None = None,
        max_ages: tuple[float, float] = MAX_AGES,
        **connector: Any,  # Any: of aiohttp
    ) -> None:
        self._timeout = timeout
        self._headers = {**_HEADERS, **headers}
        self._proxy = _proxy_options(proxy)
        self._max_ages = max_ages
        # True is aiohttp's own context, made once: to read the system's certificates takes as long
        # as hundreds of requests.
        self._connector = {"limit": 0, "keepalive_timeout": _KEEPALIVE, "ssl": tls, **connector}
        self._loop = asyncio.get_running_loop()
        # When the time-out of each request ends, the oldest first; so one timer is enough. A timer
        # for each, as aiohttp sets it, is a tenth of a request's cost.
        self._time_outs: dict[asyncio.Task[object], float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._replaced: set[asyncio.Task[None]] = set()
        self._opened_at = self._expires_at = 0.0
        self._renew_session()

    async def request(
        self,
        method: str,
        url: URL,
        *,
        max_body: int = MAX_BODY,
        discard_body: bool = False,
        **options: Any,  # Any: further arguments of `aiohttp.ClientSession.request`
    ) -> Response:
        """Send a request and read the response.

        Args:
            method: such as `GET`.
            url: where to.
            max_body: bytes; a longer body is an invalid response.
            discard_body: do not return the body: the status and the headers are enough, even where
                the body never ends.
            options: such as `data` and `headers`.

        Raises:
            RequestError: there was no usable response; see its subclasses.
        """
        if self._loop.time() >= self._expires_at:
            task = self._loop.create_task(self._close_later(self._session))
            self._replaced.add(task)
            task.add_done_callback(self._replaced.discard)
            self._renew_session()
        limit = None if discard_body else max_body
        return await self._send(self._session, limit, method, url, **options)

    async def request_once(self, url: URL) -> Response:
        """Send one GET on a connection of its own, and never a second time; see `request`.

        Raises:
            RequestError: `sent` is false where there was no connection to send the request on.
        """
        connected = False

        async def on_connection(*_: object) -> None:
            nonlocal connected
            connected = True

        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(on_connection)
        async with self._open_session(trace_configs=[trace]) as session:
            try:
                return await self._send(session, MAX_BODY, "GET", url, middlewares=(_never_again,))
            except RequestError as error:
                error.sent = connected
                raise

    def distrust(self) -> None:
        """Renew the connections soon: a response was bad, or there was none."""
        self._expires_at = min(self._expires_at, self._opened_at + self._max_ages[1])

    async def close(self) -> None:
        """Close all connections; requests under way fail."""
        if self._timer:
            self._timer.cancel()
        for task in self._replaced:
            task.cancel()
        await asyncio.gather(self._session.close(), *self._replaced, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _send(
        self,
        session: aiohttp.ClientSession,
        limit: int | None,
        method: str,
        url: URL,
        **options: Any,  # Any: as above
    ) -> Response:
        # Without the loop, it would be looked up, which costs more than all the rest here.
        task: asyncio.Task[object] = asyncio.current_task(self._loop)  # type: ignore[assignment]
        self._time_outs[task] = self._loop.time() + self._timeout
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout, self._expire)
        try:
            response = await session.request(
                method, url, allow_redirects=False, **self._proxy, **options
            )
            try:
                body = b"" if limit is None else await _read_body(response, limit)
            except BaseException:
                response.close()
                raise
        except BaseException as error:
            # As in asyncio.timeout: where somebody else has cancelled it too, it stays cancelled.
            timed_out = self._time_outs[task] == _EXPIRED and task.uncancel() == 0
            if timed_out and isinstance(error, asyncio.CancelledError):
                error = TimeoutError()
            if not isinstance(error, Exception):
                raise
            self.distrust()
            # `from None`: the original's text and traceback hold the URL, and so the credentials.
            raise map_exception(error) from None
        finally:
            del self._time_outs[task]
        if limit is None:
            await _discard_body(response)
        return Response(response.status, response.headers, body)

    def _expire(self) -> None:
        """End the requests whose time is up, and set the timer for the next."""
        now, self._timer = self._loop.time(), None
        for task, ends_at in self._time_outs.items():
            if ends_at > now:
                self._timer = self._loop.call_later(max(0.001, ends_at - now), self._expire)
                return
            if ends_at != _EXPIRED:
                self._time_outs[task] = _EXPIRED
                task.cancel()

    def _open_session(self, **options: Any) -> aiohttp.ClientSession:  # Any: of aiohttp
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(**self._connector),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # see _expire
            auto_decompress=False,
            **options,
        )

    def _renew_session(self) -> None:
        self._session = self._open_session()
        self._opened_at = self._loop.time()
        self._expires_at = self._opened_at + self._max_ages[0]

    async def _close_later(self, session: aiohttp.ClientSession) -> None:
        try:
            await asyncio.sleep(self._timeout + 1)  # by then its requests have ended
        finally:
            await session.close()


async def _never_again(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending a GET again where the connection broke."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise map_exception(error) from None


# The first that matches counts.
_MAPPED: Final[tuple[tuple[Any, type[RequestError], str], ...]] = (  # Any: of `isinstance`
    (TimeoutError, RequestTimeoutError, "no complete answer in time"),
    (
        (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch, ssl.SSLError),
        TLSError,
        "the peer could not be authenticated",
    ),
    (aiohttp.ClientHttpProxyError, ConnectionFailedError, "the proxy refused the connection"),
    (aiohttp.ClientPayloadError, ConnectionFailedError, "the connection broke within the answer"),
    (
        (aiohttp.ClientConnectionError, OSError),
        ConnectionFailedError,
        "no connection, or one that broke",
    ),
    (Exception, InvalidResponseError, "the answer could not be read"),
)


def map_exception(error: Exception) -> RequestError:
    """Return the project's exception for any that a request may raise."""
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, RequestError):
        return error.os_error.with_traceback(None)  # from `socket_factory`
    if isinstance(error, RequestError):
        return error
    kind, words = next((kind, words) for of, kind, words in _MAPPED if isinstance(error, of))
    # Not the error's own text, which may hold an address.
    errno = error.errno if isinstance(error, OSError) and kind is ConnectionFailedError else None
    reason = os.strerror(errno) if errno and errno > 0 else type(error).__name__
    return kind(words if kind is RequestTimeoutError else f"{words} ({reason})")


def basic_auth(url: URL) -> dict[str, str]:
    """Return the header that shows the user and password of a URL, if it has any.

    Left to itself, aiohttp cannot encode most letters that a password may hold.
    """
    if url.user is None and url.password is None:
        return {}
    shown = b64encode(f"{url.user or ''}:{url.password or ''}".encode()).decode()
    return {"Authorization": f"Basic {shown}"}


def _proxy_options(secret: Secret | None) -> dict[str, Any]:  # Any: arguments of a request
    if secret is None:
        return {}
    url = URL(secret.reveal())
    # aiohttp makes of the header the `Proxy-Authorization` of the request, or of its CONNECT.
    return {"proxy": url.with_user(None), "proxy_headers": basic_auth(url)}


async def _read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    content = response.content
    # Nearly always, all of it has come with the headers.
    body = content.read_nowait() if content.is_eof() else await content.readany()
    while not content.at_eof() and len(body) <= limit:
        body += await content.readany()
    if len(body) > limit:
        raise InvalidResponseError(f"the answer has more than {limit} bytes")
    return body


async def _discard_body(response: aiohttp.ClientResponse) -> None:
    """Read a body, if it is short and there soon, and drop it."""
    with suppress(Exception):  # the status has said everything
        async with asyncio.timeout(_DISCARD_TIMEOUT):
            left = _MAX_DISCARDED
            while left > 0 and (chunk := await response.content.readany()):
                left -= len(chunk)
            if response.content.at_eof():
                response.release()
    response.close()
