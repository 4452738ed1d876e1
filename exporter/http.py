"""The HTTP client for other servers.

Exceptions of aiohttp, asyncio and the system become exceptions of the project: see `_MAPPED`. Their
messages are not used, because URLs and headers may contain credentials.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from base64 import b64encode
from collections.abc import Coroutine, Mapping
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
"""Maximum bytes of a response body by default. The provider sends about 200."""

MAX_AGES: Final = (300.0, 30.0)
"""Maximum age of connections in seconds: normally, and after a bad response."""

# Longer than the default poll interval of 15 s, so that a quiet account keeps its connection.
_KEEPALIVE: Final = 75.0

# Deadline of a request that has timed out.
_EXPIRED: Final = -1.0

# Bytes and seconds to spend on an unneeded body, so that its connection can be reused.
_MAX_DISCARDED: Final = 16 * 1024
_DISCARD_TIMEOUT: Final = 1.0

_HEADERS: Final = {
    # Uncompressed, because of decompression bombs.
    "Accept-Encoding": "identity",
    "User-Agent": f"esms-exporter/{exporter.__version__}",
}


class Response(NamedTuple):
    """A complete response. The body is not decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """Sends requests to a few servers over persistent connections.

    Redirects are not followed, because their target would receive the credentials. Cookies and
    proxies of the environment are ignored; bodies are limited and not decompressed. Connections
    are renewed after some time, and earlier after bad responses: the host name may have a new
    address while the old address still responds.

    Args:
        timeout: seconds from connecting to the last byte.
        headers: sent with every request.
        tls: verifies certificates; by default against the authorities of the system, or those in
            `SSL_CERT_FILE`, as they were at the start of the process.
        proxy: the URL of an HTTP proxy.
        max_ages: see `MAX_AGES`.
        connector: further arguments of `aiohttp.TCPConnector`. Its `socket_factory` may raise a
            `RequestError`.

    Must be created in a running event loop, and closed.
    """

    def __init__(
        self,
        timeout: float,
        headers: Mapping[str, str],
        *,
        tls: ssl.SSLContext | None = None,
        proxy: Secret | None = None,
        max_ages: tuple[float, float] = MAX_AGES,
        **connector: Any,  # Any: of aiohttp
    ) -> None:
        self._timeout = timeout
        self._headers = {**_HEADERS, **headers}
        self._proxy = _proxy_options(proxy)
        self._max_ages = max_ages
        # True is aiohttp's shared context: reading the system's certificates takes as long as
        # hundreds of requests.
        self._connector = {
            "limit": 0,
            "keepalive_timeout": _KEEPALIVE,
            "ssl": tls or True,
            **connector,
        }
        self._loop = asyncio.get_running_loop()
        # The deadlines of requests, in ascending order, share one timer. A timer per request, as in
        # aiohttp, is a tenth of the cost of a request.
        self._deadlines: dict[asyncio.Task[object], float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._replaced: dict[asyncio.Task[None], aiohttp.ClientSession] = {}
        self._opened_at = self._expires_at = 0.0
        self._renew_session()

    # Not a coroutine function: each coroutine that only awaits another costs a microsecond.
    def request(
        self,
        method: str,
        url: URL,
        *,
        max_body: int | None = MAX_BODY,
        **options: Any,  # Any: further arguments of `aiohttp.ClientSession.request`
    ) -> Coroutine[Any, Any, Response]:
        """Send a request and read the response; `options` are those of `aiohttp`, such as `data`.

        A body of more than `max_body` bytes is an invalid response. With None, the body is empty,
        and the end of the response is not awaited.

        Raises:
            RequestError: no usable response; see its subclasses.
        """
        if self._loop.time() >= self._expires_at:
            task = self._loop.create_task(self._close_later(self._session))
            self._replaced[task] = self._session
            task.add_done_callback(self._replaced.pop)
            self._renew_session()
        return self._send(self._session, max_body, method, url, **options)

    async def request_once(self, url: URL) -> Response:
        """Send a GET request on a new connection, without any retry; see `request`.

        Raises:
            RequestError: `sent` is false if no connection was established.
        """
        connected = False

        async def on_connection(*_: object) -> None:
            nonlocal connected
            connected = True

        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(on_connection)
        async with self._open_session(trace_configs=[trace]) as session:
            try:
                return await self._send(session, MAX_BODY, "GET", url, middlewares=(_no_retry,))
            except RequestError as error:
                error.sent = connected
                raise

    def renew_soon(self) -> None:
        """Renew the connections soon, after a bad or missing response."""
        self._expires_at = min(self._expires_at, self._opened_at + self._max_ages[1])

    async def close(self) -> None:
        """Close all connections; requests in flight fail, except those of `request_once`."""
        for task in self._replaced:
            task.cancel()
        # A task that is cancelled before its first step would leave its session open.
        sessions = self._session, *self._replaced.values()
        await asyncio.gather(*(session.close() for session in sessions), return_exceptions=True)

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
        # Passing the loop avoids an expensive look-up.
        task: asyncio.Task[object] = asyncio.current_task(self._loop)  # type: ignore[assignment]
        self._deadlines[task] = self._loop.time() + self._timeout
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
            # As in asyncio.timeout: another cancellation of the task has precedence.
            timed_out = self._deadlines[task] == _EXPIRED and task.uncancel() == 0
            if timed_out and isinstance(error, asyncio.CancelledError):
                error = TimeoutError()
            if not isinstance(error, Exception):
                raise
            self.renew_soon()
            # `from None`: the original message and traceback may contain credentials.
            raise map_exception(error) from None
        finally:
            del self._deadlines[task]
        if limit is None:
            with suppress(Exception):  # the status is enough
                async with asyncio.timeout(_DISCARD_TIMEOUT):
                    await _read_body(response, _MAX_DISCARDED)
            response.close()  # no effect after a complete body: the connection was released
        return Response(response.status, response.headers, body)

    def _expire(self) -> None:
        """Cancel the requests that have timed out, and set the timer for the next deadline."""
        now, self._timer = self._loop.time(), None
        for task, ends_at in self._deadlines.items():
            if ends_at > now:
                self._timer = self._loop.call_later(max(0.001, ends_at - now), self._expire)
                return
            if ends_at != _EXPIRED:
                self._deadlines[task] = _EXPIRED
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
        await asyncio.sleep(self._timeout + 1)  # until its requests have ended
        await session.close()


async def _no_retry(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keep aiohttp from retrying a GET request on a broken connection."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise map_exception(error) from None


# The first match applies.
_MAPPED: Final[tuple[tuple[Any, type[RequestError], str], ...]] = (  # Any: of `isinstance`
    (TimeoutError, RequestTimeoutError, "timed out before the response was complete"),
    (
        (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch, ssl.SSLError),
        TLSError,
        "the server could not be authenticated",
    ),
    (aiohttp.ClientHttpProxyError, ConnectionFailedError, "the proxy refused the connection"),
    (aiohttp.ClientPayloadError, ConnectionFailedError, "the connection broke during the response"),
    ((aiohttp.ClientConnectionError, OSError), ConnectionFailedError, "the connection failed"),
    (Exception, InvalidResponseError, "the response could not be read"),
)


def map_exception(error: Exception) -> RequestError:
    """Return the project's exception for an exception of a request."""
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, RequestError):
        return error.os_error.with_traceback(None)  # from `socket_factory`
    if isinstance(error, RequestError):
        return error
    kind, words = next((kind, words) for of, kind, words in _MAPPED if isinstance(error, of))
    # The message of the error may contain an address.
    errno = error.errno if isinstance(error, OSError) and kind is ConnectionFailedError else None
    reason = os.strerror(errno) if errno and errno > 0 else type(error).__name__
    return kind(words if kind is RequestTimeoutError else f"{words} ({reason})")


def basic_auth(url: URL) -> dict[str, str]:
    """Return the `Authorization` header for the user and password of a URL, if any.

    aiohttp itself fails on most non-ASCII letters.
    """
    if url.user is None and url.password is None:
        return {}
    shown = b64encode(f"{url.user or ''}:{url.password or ''}".encode()).decode()
    return {"Authorization": f"Basic {shown}"}


def _proxy_options(secret: Secret | None) -> dict[str, Any]:  # Any: arguments of a request
    if secret is None:
        return {}
    url = URL(secret.reveal())
    # aiohttp sends the header as `Proxy-Authorization`, with CONNECT too.
    return {"proxy": url.with_user(None), "proxy_headers": basic_auth(url)}


async def _read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    content = response.content
    # Usually, the body arrives together with the headers.
    body = content.read_nowait() if content.is_eof() else await content.readany()
    while not content.at_eof() and len(body) <= limit:
        body += await content.readany()
    if len(body) > limit:
        raise InvalidResponseError(f"the response has more than {limit} bytes")
    return body
