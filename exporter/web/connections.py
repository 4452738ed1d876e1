"""The open connections: how many there may be, and how slow they may be."""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final, cast

import structlog
from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from exporter.metrics.catalogue import Catalogue
from exporter.web.web_config import ACCEPTED, Tls

KEEPALIVE_TIMEOUT: Final = 300.0
"""Seconds that a connection is kept without a request: longer than any scrape interval."""

MAX_AHEAD: Final = 64 << 10
"""Bytes that a client may send of further requests before the answer to one."""

# A scrape's request has some ten headers; a proxy adds a few.
_MAX_HEADERS: Final = 64

# Seconds after which a failed handshake is logged again, for each reason.
_LOG_INTERVAL: Final = 60.0


class TlsFailure(StrEnum):
    """Why a TLS handshake with a client failed: the label `reason`."""

    CLIENT_REFUSED = "client_refused"  # the client sent an alert
    NO_CERTIFICATE = "no_certificate"
    BAD_CERTIFICATE = "bad_certificate"
    NOT_ALLOWED = "not_allowed"  # by `client_allowed_sans`
    UNSUPPORTED = "unsupported"  # no common version, cipher or curve
    NOT_TLS = "not_tls"
    CLOSED = "closed"
    TIMEOUT = "timeout"
    OTHER = "other"


_TLS_FAILURES: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": TlsFailure.NO_CERTIFICATE,
    "CERTIFICATE_VERIFY_FAILED": TlsFailure.BAD_CERTIFICATE,
    **dict.fromkeys(
        ("UNSUPPORTED_PROTOCOL", "VERSION_TOO_LOW", "NO_SHARED_CIPHER", "NO_SHARED_GROUPS",
         "NO_SUITABLE_KEY_SHARE", "NO_SUITABLE_SIGNATURE_ALGORITHM", "NO_APPLICATION_PROTOCOL"),
        TlsFailure.UNSUPPORTED,
    ),
    **dict.fromkeys(
        ("HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL"),
        TlsFailure.NOT_TLS,
    ),
}  # fmt: skip
"""By the reasons that OpenSSL gives."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may cost; docs/access.md lists these. Times in seconds."""

    per_address: int = 256  # connections of one address, or of one /64 of IPv6
    connections: int = 1_000
    head: float = 10.0  # for the head of a request, or the handshake before it
    body: float = 30.0  # for the body of a request
    stall: float = 10.0  # that a client may take none of its answer (on Linux)
    # For reading the rest of a body after an answer that did not wait for it: if the connection
    # were closed at once, the client could lose the answer.
    linger: float = 5.0
    accept_retry: float = 1.0  # after a connection could not be accepted
    scrapes: int = 100  # answers of metrics under way
    pages: int = 32  # status pages that wait to be rendered
    password_checks: int = 64  # passwords that wait to be checked


class Connections:
    """Accepts connections, and closes those that take too long.

    When there are too many, the one that has been without a request for longest is closed: holding
    many open does not keep a scrape out.

    Args:
        headers: those of answers to broken requests.
        metrics: where failed handshakes are counted.
        limits: what the connections may cost.
    """

    def __init__(self, headers: dict[str, str], metrics: Catalogue, limits: Limits) -> None:
        self.headers = headers
        self.limits = limits
        self.open: set[Connection] = set()
        self._tls: Tls | None = None
        self._failures = {
            reason: metrics.tls_failures.labels(reason.value) for reason in TlsFailure
        }
        self._log_at: dict[TlsFailure, float] = {}

    def configure(self, tls: Tls | None) -> None:
        """Secure new connections like this; None for plain HTTP."""
        self._tls = tls

    async def accept(self, listener: socket.socket, server: web.Server) -> None:
        """Accept the connections of a listening socket, until cancelled; `server` answers them.

        Not left to the event loop, so that a handshake counts as a connection, and so that each
        connection gets the certificate that is in force then.
        """
        loop, failing = asyncio.get_running_loop(), False
        while True:
            try:
                accepted, address = await loop.sock_accept(listener)
            except OSError as error:
                # Too many open files, most likely; the connection waits in the kernel.
                if not failing:
                    _log.error("accepting connections failed", error=error.strerror)
                failing = True
                await asyncio.sleep(self.limits.accept_retry)
                continue
            if failing:
                _log.info("accepting connections recovered")
            failing = False
            if listener.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
                # Only the kernel sees whether a client reads: buffers and TLS are in between.
                milliseconds = int(self.limits.stall * 1000)
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            peer = address[0] if isinstance(address, tuple) else ""
            if self._make_room(address_of(peer)):
                connection = Connection(self, server, peer, self._tls)
                self.open.add(connection)
                connection.open(accepted)
            else:
                accepted.close()

    def _make_room(self, address: str) -> bool:
        """Close an idle connection where there are too many; returns whether there is room."""
        candidates = {one for one in self.open if one.address == address}
        if len(candidates) < self.limits.per_address:
            if len(self.open) < self.limits.connections:
                return True
            candidates = self.open
        idle = [connection for connection in candidates if not connection.busy]
        if idle:
            min(idle, key=lambda connection: connection.idle_since).abort()
        return bool(idle)

    def handshake_failed(self, reason: TlsFailure, peer: str, problem: str = "") -> None:
        """Count a failed handshake, and log it, once a minute for each reason at most."""
        self._failures[reason].inc()
        if (now := asyncio.get_running_loop().time()) >= self._log_at.get(reason, 0.0):
            self._log_at[reason] = now + _LOG_INTERVAL
            _log.warning("TLS handshake failed", reason=reason.value, peer=peer, problem=problem)

    def close(self) -> None:
        """Close all of them at once."""
        for connection in [*self.open]:
            connection.abort()


class Connection(web.RequestHandler):
    """One connection, plain or with TLS.

    Args:
        connections: all of them.
        server: answers its requests.
        peer: address of the client; empty for a Unix socket.
        tls: how it is secured; None for plain HTTP.

    Attributes:
        address: what its connections are limited by.
        busy: whether a request is being answered.
        idle_since: when the last request ended, or the connection was opened.
    """

    def __init__(
        self, connections: Connections, server: web.Server, peer: str, tls: Tls | None
    ) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type] # as AppRunner has it, for no access log
            keepalive_timeout=KEEPALIVE_TIMEOUT,
            lingering_time=connections.limits.linger,
            max_headers=_MAX_HEADERS,
            read_bufsize=MAX_AHEAD,
            # Handlers decompress the bodies that they want, after access was granted.
            auto_decompress=False,
        )
        self._connections = connections
        self._tls = tls
        self._peer = peer
        self._handshake: asyncio.Task[None] | None = None
        # From beginning to end; aiohttp drops its own reference when it begins to close.
        self._socket: asyncio.Transport | None = None
        self._body: StreamReader = EMPTY_PAYLOAD
        self._ahead = 0
        self.address = address_of(peer)
        self.busy = False
        self.idle_since = self._loop.time()
        self._expect_head()

    def _expect_head(self) -> None:
        self._head_timer = self._loop.call_later(self._connections.limits.head, self._head_is_late)

    def _head_is_late(self) -> None:
        if self._tls and self._handshake:
            self._connections.handshake_failed(TlsFailure.TIMEOUT, self._peer)
        self.abort()

    def begin(self, body: StreamReader) -> None:
        """Note that the head of a request was received."""
        self._head_timer.cancel()
        self.busy, self._body, self._ahead = True, body, 0

    def end(self) -> None:
        """Note that the request was answered."""
        self.busy, self.idle_since = False, self._loop.time()

    def abort(self) -> None:
        """Close it at once."""
        if self._handshake is not None:
            self._handshake.cancel()
        if self._socket is not None:
            self._socket.abort()
        self._forget()

    def _forget(self) -> None:
        self._head_timer.cancel()
        self._connections.open.discard(self)

    def open(self, accepted: socket.socket) -> None:
        """Begin, with the handshake if there is one."""
        self._handshake = self._loop.create_task(self._open(accepted))

    async def _open(self, accepted: socket.socket) -> None:
        context = self._tls.context if self._tls else None
        # Not reached: the head's timer closes the connection before.
        timeout = 2 * self._connections.limits.head if context else None
        ACCEPTED.set(accepted)
        try:
            await self._loop.connect_accepted_socket(
                lambda: self, accepted, ssl=context, ssl_handshake_timeout=timeout
            )
        except OSError as error:  # and those of TLS
            if context:
                reason, problem = _failure(error)
                self._connections.handshake_failed(reason, self._peer, problem)
            else:
                _log.debug("connection setup failed", error=type(error).__name__)
        finally:
            self._handshake = None
            if self._socket is None:
                accepted.close()
                self._forget()

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with HTTP."""
        self._socket = cast("asyncio.Transport", transport)  # uvloop's own is none by name
        if self._tls and not self._tls.admits(transport.get_extra_info("peercert")):
            self._connections.handshake_failed(TlsFailure.NOT_ALLOWED, self._peer)
            self.force_close()
            self._socket.close()
            return
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Take what the client sends, within bounds."""
        if self.busy and self._body.is_eof():
            # Further requests, which aiohttp holds until this one is answered.
            self._ahead += len(data)
            if self._ahead > MAX_AHEAD:
                self.abort()
                return
        elif not self.busy and self._body.is_eof() and self._head_timer.cancelled():
            self._expect_head()
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Note that it has ended."""
        self._socket = None
        self._forget()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it repeats what the client sent
    ) -> web.StreamResponse:
        """Answer what is no HTTP, or what failed, without repeating any of it."""
        if status >= 500 and exc is not None:
            self.log_exception("request failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        response = web.Response(
            status=status,
            text="bad request\n" if status < 500 else "failed\n",
            headers=self._connections.headers,
        )
        response.force_close()
        return response


def _failure(error: OSError) -> tuple[TlsFailure, str]:
    """Return why a handshake failed, and what OpenSSL says."""
    if not isinstance(error, ssl.SSLError):
        return TlsFailure.CLOSED, ""
    reason = error.reason or ""
    if "_ALERT_" in reason:
        kind = TlsFailure.CLIENT_REFUSED
    else:
        kind = _TLS_FAILURES.get(reason, TlsFailure.OTHER)
    return kind, getattr(error, "verify_message", "") or reason.lower().replace("_", " ")


def address_of(host: str) -> str:
    """Return the address that connections are limited by; empty for a Unix socket."""
    if not host:
        return ""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or ip_network((address, 64), strict=False))
    return str(address)
