"""Connections of the HTTP server: limits of number, time and size."""

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
"""Seconds until an idle connection is closed; longer than any scrape interval."""

MAX_AHEAD: Final = 64 << 10
"""Limit in bytes of data that a client sends early: further requests before the response, or the
rest of a body after the response."""

# A scrape sends some ten headers; a proxy adds a few.
_MAX_HEADERS: Final = 64

# Seconds between log messages about failed handshakes with the same reason.
_LOG_INTERVAL: Final = 60.0


class TlsFailure(StrEnum):
    """Why a TLS handshake with a client failed: the label `reason`."""

    CLIENT_REFUSED = "client_refused"  # the client sent an alert
    NO_CERTIFICATE = "no_certificate"
    BAD_CERTIFICATE = "bad_certificate"
    NOT_ALLOWED = "not_allowed"  # not in `client_allowed_sans`
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
"""Keyed by the reason in OpenSSL's error."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for clients; docs/access.md lists them. Times in seconds."""

    per_address: int = 256  # connections from one IPv4 address or IPv6 /64
    connections: int = 1_000
    head: float = 10.0  # to receive the TLS handshake and the head of a request
    body: float = 30.0  # to receive the body of a request
    stall: float = 10.0  # without the client reading its response (Linux only)
    # To read the rest of a body after an early response: if the connection were closed at once, the
    # client could lose the response.
    linger: float = 5.0
    accept_retry: float = 1.0  # after a failed accept
    scrapes: int = 100  # concurrent responses with metrics
    pages: int = 32  # status pages waiting to be rendered
    password_checks: int = 64  # passwords waiting to be checked


class Connections:
    """Accepts connections, limits their number, and closes slow ones.

    At a limit, the connection that has been idle for longest is closed, so that many open
    connections do not block scrapes. `headers` are added to responses to malformed requests.
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
        """Set the TLS configuration of new connections; None for plain HTTP."""
        self._tls = tls

    async def accept(self, listener: socket.socket, server: web.Server) -> None:
        """Accept connections of a listening socket until cancelled; `server` handles them.

        Replaces the event loop's own method, so that connections count from before the handshake
        and use the current certificate.
        """
        loop, failing = asyncio.get_running_loop(), False
        while True:
            try:
                accepted, address = await loop.sock_accept(listener)
            except OSError as error:
                # Most likely too many open files; the connection waits in the kernel's queue.
                if not failing:
                    _log.error("accepting connections failed", error=error.strerror)
                failing = True
                await asyncio.sleep(self.limits.accept_retry)
                continue
            if failing:
                _log.info("accepting connections recovered")
            failing = False
            if listener.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
                # Only the kernel can detect clients that do not read: asyncio and TLS buffer data.
                milliseconds = int(self.limits.stall * 1000)
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            peer = address[0] if isinstance(address, tuple) else ""
            if self._make_room(address_of(peer)):
                self.open.add(Connection(self, server, accepted, peer, self._tls))
            else:
                accepted.close()

    def _make_room(self, address: str) -> bool:
        """Close an idle connection at a limit; return whether there is room for another."""
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
        """Count a failed handshake; log at most one a minute per reason."""
        self._failures[reason].inc()
        if (now := asyncio.get_running_loop().time()) >= self._log_at.get(reason, 0.0):
            self._log_at[reason] = now + _LOG_INTERVAL
            _log.warning("TLS handshake failed", reason=reason.value, peer=peer, problem=problem)

    def close(self) -> None:
        for connection in [*self.open]:
            connection.abort()


class Connection(web.RequestHandler):
    """A connection, from before its TLS handshake if there is one.

    Attributes:
        address: the address or network that `Limits.per_address` applies to.
        busy: whether a request is being answered.
        idle_since: end of the last request, or start of the connection.
    """

    def __init__(
        self,
        connections: Connections,
        server: web.Server,
        accepted: socket.socket,
        peer: str,
        tls: Tls | None,
    ) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type] # no access log, as in AppRunner
            keepalive_timeout=KEEPALIVE_TIMEOUT,
            lingering_time=connections.limits.linger,
            max_headers=_MAX_HEADERS,
            read_bufsize=MAX_AHEAD,
            # Handlers decompress bodies themselves, after they have checked the token.
            auto_decompress=False,
        )
        self._connections = connections
        self._tls = tls
        self._peer = peer
        # Kept until the end; aiohttp drops its own reference when it starts to close.
        self._socket: asyncio.Transport | None = None
        self._body: StreamReader = EMPTY_PAYLOAD
        self._ahead = 0
        self.address = address_of(peer)
        self.busy = False
        self.idle_since = self._loop.time()
        self._expect_head()
        self._opening: asyncio.Task[None] | None = self._loop.create_task(self._open(accepted))

    def _expect_head(self) -> None:
        self._head_timer = self._loop.call_later(self._connections.limits.head, self._head_is_late)

    def _head_is_late(self) -> None:
        if self._tls and self._opening:
            self._connections.handshake_failed(TlsFailure.TIMEOUT, self._peer)
        self.abort()

    def begin(self, body: StreamReader) -> None:
        """Mark the connection as busy, now that the head of a request is complete."""
        self._head_timer.cancel()
        self.busy, self._body, self._ahead = True, body, 0

    def end(self) -> None:
        """Mark the connection as idle after a response."""
        self.busy, self.idle_since = False, self._loop.time()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._opening is not None:
            self._opening.cancel()
        if self._socket is not None:
            self._socket.abort()
        self._forget()

    def _forget(self) -> None:
        self._head_timer.cancel()
        self._connections.open.discard(self)

    async def _open(self, accepted: socket.socket) -> None:
        context = self._tls.context if self._tls else None
        # Never reached: the timer of the head closes the connection first.
        timeout = 2 * self._connections.limits.head if context else None
        ACCEPTED.set(accepted)
        try:
            await self._loop.connect_accepted_socket(
                lambda: self, accepted, ssl=context, ssl_handshake_timeout=timeout
            )
        except OSError as error:  # includes ssl.SSLError
            if context:
                reason, problem = _failure(error)
                self._connections.handshake_failed(reason, self._peer, problem)
            else:
                _log.debug("connection setup failed", error=type(error).__name__)
        finally:
            self._opening = None
            if self._socket is None:
                accepted.close()
                self._forget()

    # Callbacks of asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast("asyncio.Transport", transport)  # uvloop has its own class
        if self._tls and not self._tls.admits(transport.get_extra_info("peercert")):
            self._connections.handshake_failed(TlsFailure.NOT_ALLOWED, self._peer)
            self.force_close()
            self._socket.close()
            return
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Process received data; limit what is sent ahead of a response."""
        if self.busy is self._body.is_eof():
            # Further requests, which aiohttp buffers until the current one is answered, or the rest
            # of an unread body. Clients without access can send both.
            self._ahead += len(data)
            if self._ahead > MAX_AHEAD and self._socket is not None:
                if self.busy:
                    self.abort()
                else:
                    self._socket.pause_reading()
                return
        elif not self.busy and self._head_timer.cancelled():
            self._expect_head()
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
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
        """Answer a malformed or failed request without repeating any of its content."""
        if status >= 500 and exc is not None:
            self.log_exception("request failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the response has already started")
        response = web.Response(
            status=status,
            text="bad request\n" if status < 500 else "failed\n",
            headers=self._connections.headers,
        )
        response.force_close()
        return response


def _failure(error: OSError) -> tuple[TlsFailure, str]:
    """Return why a handshake failed, and OpenSSL's message."""
    if not isinstance(error, ssl.SSLError):
        return TlsFailure.CLOSED, ""
    reason = error.reason or ""
    if "_ALERT_" in reason:
        kind = TlsFailure.CLIENT_REFUSED
    else:
        kind = _TLS_FAILURES.get(reason, TlsFailure.OTHER)
    return kind, getattr(error, "verify_message", "") or reason.lower().replace("_", " ")


def address_of(host: str) -> str:
    """Return the address or network that limits apply to; empty for a Unix socket."""
    if not host:
        return ""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or ip_network((address, 64), strict=False))
    return str(address)
