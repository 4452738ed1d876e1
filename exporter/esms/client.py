"""Requests to the provider: one session per account, one exception for each failure."""

from __future__ import annotations

import asyncio
import ssl
import time
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import aiohttp
from yarl import URL

import exporter
from exporter.calls import ReferenceId
from exporter.errors import (
    ConnectionFailedError,
    RequestError,
    RequestTimeoutError,
    TLSError,
    UnreadableAnswerError,
)
from exporter.esms.answers import Answer, read_answer, read_refusal
from exporter.esms.codes import Outcome
from exporter.esms.deadline import Deadlines
from exporter.secrets import Secret

MAX_BODY: Final = 64 * 1024
"""Bytes that an answer may have; a real one has some 200."""

# A member of an enumeration is looked up anew each time, which takes as long as a function's call.
_OK: Final = int(HTTPStatus.OK)

# Beyond the 15 s at which an account is polled by default, so that a quiet account keeps its
# connection from poll to poll.
_KEEPALIVE: Final = 75.0

HEADERS: Final = {
    "Accept": "application/json",
    # Answers are small, and what is not compressed cannot be a decompression bomb.
    "Accept-Encoding": "identity",
    "User-Agent": f"esms-exporter/{exporter.__version__}",
}


MAX_AGES: Final = (300.0, 30.0)
"""Seconds for which connections are used: while the answers are good, and after a bad one."""


class RenewedSession:
    """A session that is replaced when its connections are old, or the answers on them are bad.

    A name may have moved to another address while the old address still answers.

    Args:
        make: makes a session.
        timeout: seconds after which requests on a replaced session have ended.
        max_ages: seconds for which a session is used, and after a bad answer.

    Must be made inside a running loop, and closed.
    """

    def __init__(
        self,
        make: Callable[[], aiohttp.ClientSession],
        timeout: float,
        max_ages: tuple[float, float] = MAX_AGES,
    ) -> None:
        self._make = make
        self._timeout = timeout
        self._max_ages = max_ages
        self._loop = asyncio.get_running_loop()
        self._made_at = self._until = 0.0
        self._replaced: set[asyncio.Task[None]] = set()
        self._begin()

    def get(self) -> aiohttp.ClientSession:
        """Return the session for a request that begins now."""
        if self._loop.time() >= self._until:
            task = self._loop.create_task(self._close_later(self._session))
            self._replaced.add(task)
            task.add_done_callback(self._replaced.discard)
            self._begin()
        return self._session

    def distrust(self) -> None:
        """Replace the session soon: an answer was bad, or there was none."""
        self._until = min(self._until, self._made_at + self._max_ages[1])

    async def close(self) -> None:
        """Close all connections; requests under way fail."""
        for task in self._replaced:
            task.cancel()
        await asyncio.gather(self._session.close(), *self._replaced, return_exceptions=True)

    def _begin(self) -> None:
        self._session = self._make()
        self._made_at = self._loop.time()
        self._until = self._made_at + self._max_ages[0]

    async def _close_later(self, session: aiohttp.ClientSession) -> None:
        try:
            await asyncio.sleep(self._timeout + 1)
        finally:
            await session.close()


class Client:
    """Asks the provider with the credentials of one account.

    Args:
        base_url: such as `https://voiceapi.esms.vn/MainService.svc/json`.
        api_key: goes into the query string of each request; so does `secret_key`.
        secret_key: see `api_key`.
        timeout: seconds from connect to the last byte.
        max_connections: connections held at once.
        tls: verifies certificates; by default against the system's authorities, or those that the
            environment variable `SSL_CERT_FILE` names, as they were when the process started.
        proxy: the URL of an HTTP proxy; those that the environment names are not used.
        max_ages: see `RenewedSession`.

    Must be made inside a running loop, and closed.
    """

    def __init__(
        self,
        base_url: str,
        api_key: Secret,
        secret_key: Secret,
        *,
        timeout: float,
        max_connections: int,
        tls: ssl.SSLContext | bool = True,
        proxy: Secret | None = None,
        max_ages: tuple[float, float] = MAX_AGES,
    ) -> None:
        key, secret = (quote(held.reveal(), safe="") for held in (api_key, secret_key))
        # All of the URL but the id, encoded and taken apart once: that costs a fifth of a request.
        url = URL(f"{URL(base_url)}/GetSendStatus", encoded=True)
        self._url = partial(
            URL.build,
            scheme=url.scheme,
            authority=url.raw_authority,
            path=url.raw_path,
            encoded=True,
        )
        self._query = Secret(f"ApiKey={key}&SecretKey={secret}&ReferenceId=")
        hidden = (api_key.reveal(), secret_key.reveal(), key, secret, "ApiKey=", "SecretKey=")
        self._hidden = [Secret(text.casefold()) for text in hidden]
        self._proxy = proxy_of(proxy)

        def make() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=max_connections,
                    keepalive_timeout=_KEEPALIVE,
                    # True is aiohttp's own context, made once: to read the system's certificates
                    # takes as long as hundreds of requests.
                    ssl=tls,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=HEADERS,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # see Deadlines
                auto_decompress=False,
            )

        self._session = RenewedSession(make, timeout, max_ages)
        self._deadlines = Deadlines(timeout)

    async def send_status(self, reference_id: ReferenceId) -> Answer:
        """Ask what became of a call: one `GetSendStatus` request.

        Raises:
            RequestError: no answer came that could be read; see its subclasses.
        """
        try:
            answer = await self._send_status(reference_id)
        except RequestError:
            self._session.distrust()
            raise
        if answer.outcome is not Outcome.OK:
            self._session.distrust()
        return answer

    async def _send_status(self, reference_id: ReferenceId) -> Answer:
        encoded: str = reference_id
        # Letters, digits and hyphens stand for themselves, and nearly every id has no others.
        if not (reference_id.isascii() and reference_id.replace("-", "").isalnum()):
            encoded = quote(reference_id, safe="")
        url = self._url(query_string=self._query.reveal() + encoded)
        try:
            with self._deadlines.begin():
                # Redirects are not followed: their target would be handed the credentials.
                session = self._session.get()
                response = await session.get(url, allow_redirects=False, **self._proxy)
                try:
                    content = response.content
                    # Nearly always, all of it has come with the headers.
                    body = content.read_nowait() if content.is_eof() else await read_body(response)
                except BaseException:
                    response.close()
                    raise
        except Exception as error:  # noqa: BLE001 - nothing of aiohttp's may escape
            # `from None`: the original's text and traceback hold the URL, and so the keys.
            raise translate(error) from None
        if len(body) > MAX_BODY:
            raise UnreadableAnswerError(f"the answer has more than {MAX_BODY} bytes")
        if response.status == _OK:
            return read_answer(body, self._hidden)
        headers = response.headers
        return read_refusal(
            response.status, headers.get("Retry-After"), time.time(), headers.get("Date")
        )

    async def close(self) -> None:
        """Close the connections; requests under way fail."""
        self._deadlines.close()
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


def proxy_of(secret: Secret | None) -> dict[str, Any]:  # Any: arguments of a request
    """Return the address of a proxy, and who asks it, as aiohttp takes them."""
    if secret is None:
        return {}
    url = URL(secret.reveal())
    if url.user is None and url.password is None:
        return {"proxy": url}
    # Left to itself, aiohttp cannot encode most letters that a password may hold. It makes of this
    # header the `Proxy-Authorization` of the request, or of the CONNECT before it.
    shown = b64encode(f"{url.user or ''}:{url.password or ''}".encode()).decode()
    return {"proxy": url.with_user(None), "proxy_headers": {"Authorization": f"Basic {shown}"}}


async def read_body(response: aiohttp.ClientResponse, most: int = MAX_BODY) -> bytes:
    """Read to the end, but not much more than `most` bytes."""
    content = response.content
    body = await content.readany()
    while not content.at_eof():
        if len(body) > most:
            response.close()
            break
        body += await content.readany()
    return body


def translate(error: Exception) -> RequestError:
    """Return the project's exception for one of aiohttp's, of asyncio's or of the system's.

    The message is made of the kind of failure alone, never of the original's text.
    """
    kind = type(error).__name__
    if isinstance(error, TimeoutError):
        return RequestTimeoutError("no complete answer in time")
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.ServerFingerprintMismatch | ssl.SSLError):
        return TLSError(f"the peer could not be authenticated ({kind})")
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return ConnectionFailedError(f"the proxy refused the connection ({kind})")
    if isinstance(error, aiohttp.ClientPayloadError):
        return ConnectionFailedError(f"the connection broke within the answer ({kind})")
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return ConnectionFailedError(f"no connection, or one that broke ({kind})")
    return UnreadableAnswerError(f"the answer could not be read ({kind})")
