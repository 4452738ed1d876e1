"""The open connections: how many there may be, and how slow they may be."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Final, cast

import structlog
from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from exporter.metrics.catalogue import Catalogue
from exporter.web.tls import ACCEPTED, Tls

MAX_PER_ADDRESS: Final = 256
"""Connections of one address, or of one /64 of IPv6; of a proxy's clients all together."""

MAX_CONNECTIONS: Final = 1_000

HEAD_TIMEOUT: Final = 10.0
"""Seconds that the head of a request, or the handshake before it, may take."""

STALL_TIMEOUT: Final = 10.0
"""Seconds that a client may take none of an answer that waits for it."""

MAX_AHEAD: Final = 64 << 10
"""Bytes that a client may send of further requests before it has the answer to one, and of the rest
of a body after the answer."""

LINGER: Final = 5.0
"""Seconds that a connection stays open after an answer that did not wait for the whole body: if it
were closed at once, the client could lose the answer."""

KEEPALIVE_TIMEOUT: Final = 300.0
"""Seconds that a connection is kept without a request: longer than scrapes are apart."""

SWEEP_EVERY: Final = 1.0
_ACCEPT_AGAIN: Final = 1.0

# A scrape's request has some ten headers; a proxy adds a few.
_MAX_HEADERS: Final = 64

# Seconds after which a failed handshake is logged again, for each reason.
_LOG_EVERY: Final = 60.0


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
         "NO_SUITABLE_KEY_SHARE", "NO_SUITABLE_SIGNATURE_ALGORITHM",
         "NO_APPLICATION_PROTOCOL"),
        TlsFailure.UNSUPPORTED,
    ),
    **dict.fromkeys(
        ("HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL"),
        TlsFailure.NOT_TLS,
    ),
}  # fmt: skip
"""By the reasons that OpenSSL gives."""

_log = structlog.get_logger(__name__)


class Connections:
    """Lets connections in, and closes those that take too long.

    Where there are too many, the one that has been without a request for longest has to make room;
    so somebody who holds many open cannot keep a scrape out.

    Args:
        server: returns what answers the requests.
        tls: returns how connections to come are secured; None for plain HTTP.
        headers: what the answers to broken requests carry.
        metrics: where handshakes that fail are counted.
    """

    def __init__(
        self,
        server: Callable[[], web.Server],
        tls: Callable[[], Tls | None],
        headers: dict[str, str],
        metrics: Catalogue,
    ) -> None:
        self.headers = headers
        self._failures = {
            reason: metrics.tls_failures.labels(reason.value) for reason in TlsFailure
        }
        self._failed = Counter[TlsFailure]()
        self._log_at: dict[TlsFailure, float] = {}
        self.loop = asyncio.get_running_loop()
        self._server = server
        self._tls = tls
        self._by_address: dict[str, dict[Connection, None]] = {}
        self._count = 0

    async def accept(self, listener: socket.socket) -> None:
        """Take the connections of a listening socket, until it is cancelled.

        They are accepted here, not by the loop, so that a handshake that does not go on counts as
        a connection like others, and so that each has the certificate of its day.
        """
        failing = False
        while True:
            try:
                accepted, peer = await self.loop.sock_accept(listener)
            except OSError as error:
                # Too many open files, most likely; the connection waits in the kernel.
                if not failing:
                    _log.error("connections cannot be accepted", error=error.strerror)
                failing = True
                await asyncio.sleep(_ACCEPT_AGAIN)
                continue
            if failing:
                _log.info("connections can be accepted again")
            failing = False
            if listener.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
                # Below TLS, nobody else sees that a client does not read.
                longest = int(STALL_TIMEOUT * 1000)
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, longest)
            connection = Connection(self, self._server(), peer, self._tls())
            if self._admit(connection):
                connection.open(accepted)
            else:
                accepted.close()

    def _admit(self, connection: Connection) -> bool:
        """Let a connection in, if there is room or can be made."""
        neighbours = self._by_address.setdefault(connection.address, {})
        if len(neighbours) >= MAX_PER_ADDRESS:
            room = _make_room(neighbours)
        else:
            room = self._count < MAX_CONNECTIONS or _make_room(self._all())
        if not room:
            self._drop_if_empty(connection.address)
            return False
        self._by_address.setdefault(connection.address, neighbours)[connection] = None
        self._count += 1
        return True

    def leave(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        neighbours = self._by_address.get(connection.address, {})
        if connection in neighbours:
            del neighbours[connection]
            self._count -= 1
            self._drop_if_empty(connection.address)

    def handshake_failed(self, reason: TlsFailure, peer: str, problem: str = "") -> None:
        """Count a handshake that failed, and log it, once a minute for each reason at most."""
        self._failures[reason].inc()
        self._failed[reason] += 1
        if (now := self.loop.time()) >= self._log_at.get(reason, 0.0):
            self._log_at[reason] = now + _LOG_EVERY
            _log.warning(
                "TLS handshake failed",
                reason=reason.value,
                peer=peer,
                problem=problem,
                failures=self._failed[reason],
            )

    async def run(self) -> None:
        """Close the connections that take too long, until it is cancelled."""
        while True:
            await asyncio.sleep(SWEEP_EVERY)
            now = self.loop.time()
            for connection in self._all():
                connection.check(now)

    def close(self) -> None:
        """Close all of them at once."""
        for connection in self._all():
            connection.abort()

    def _all(self) -> dict[Connection, None]:
        return {one: None for same in self._by_address.values() for one in same}

    def _drop_if_empty(self, address: str) -> None:
        if not self._by_address.get(address):
            self._by_address.pop(address, None)


def _make_room(connections: dict[Connection, None]) -> bool:
    idle = [one for one in connections if not one.busy]
    if not idle:
        return False
    min(idle, key=lambda one: one.since).abort()
    return True


class Connection(web.RequestHandler):
    """One connection, plain or with TLS.

    Args:
        connections: all of them.
        server: answers its requests.
        peer: address of the client, as the socket has it.
        tls: how it is secured; None for plain HTTP.
    """

    __slots__ = (
        "_ahead", "_answering", "_body", "_connections", "_head_since", "_opening", "_stalled",
        "_tls", "_wire", "address", "peer", "since",
    )  # fmt: skip

    def __init__(
        self,
        connections: Connections,
        server: web.Server,
        peer: Any,  # Any: what asyncio has for this kind of socket
        tls: Tls | None,
    ) -> None:
        super().__init__(
            server,
            loop=connections.loop,
            access_log=None,  # type: ignore[arg-type] # as AppRunner has it, for no access log
            keepalive_timeout=KEEPALIVE_TIMEOUT,
            lingering_time=LINGER,
            max_headers=_MAX_HEADERS,
            read_bufsize=MAX_AHEAD,
            # Handlers unpack the bodies that they want, after access was granted.
            auto_decompress=False,
        )
        self._connections = connections
        self._tls = tls
        self._opening: asyncio.Task[None] | None = None
        # From beginning to end; aiohttp lets go of its own when it begins to close.
        self._wire: asyncio.Transport | None = None
        self._answering = False
        self._body: StreamReader = EMPTY_PAYLOAD
        self._ahead = 0
        self._stalled: tuple[float, int] | None = None
        self.address = _address(peer)
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        self.since = connections.loop.time()
        self._head_since: float | None = self.since

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._answering or self._stalled is not None

    def begin(self, body: StreamReader) -> None:
        """Note that a request has come whole, but for its body."""
        self._answering, self._head_since = True, None
        self._body, self._ahead = body, 0

    def end(self) -> None:
        """Note that it has its answer."""
        self._answering, self.since = False, self._connections.loop.time()

    def check(self, now: float) -> None:
        """Close it if it takes too long."""
        if self._head_since is not None and now - self._head_since > HEAD_TIMEOUT:
            if self._tls and self._opening:
                self._connections.handshake_failed(TlsFailure.TIMEOUT, self.peer)
            self.abort()
        elif self._stalled is not None and self._wire is not None:
            since, left = self._stalled
            if (size := self._wire.get_write_buffer_size()) < left:
                self._stalled = (now, size)
            elif now - since > STALL_TIMEOUT:
                self.abort()

    def abort(self) -> None:
        """Close it at once; nobody waits for anything."""
        if self._opening is not None:
            self._opening.cancel()
        if self._wire is not None:
            self._wire.abort()
        self._connections.leave(self)

    def open(self, accepted: socket.socket) -> None:
        """Begin, with the handshake if there is one."""
        self._opening = self._connections.loop.create_task(self._open(accepted))

    async def _open(self, accepted: socket.socket) -> None:
        context = self._tls.context if self._tls else None
        ACCEPTED.set(accepted)
        try:
            await self._connections.loop.connect_accepted_socket(
                lambda: self,
                accepted,
                ssl=context,
                # Not reached: `check` closes it before.
                ssl_handshake_timeout=2 * HEAD_TIMEOUT if context else None,
            )
        except OSError as error:  # and those of TLS
            if context:
                self._connections.handshake_failed(*_failure(error, self.peer))
            else:
                _log.debug("connection not opened", error=type(error).__name__)
        finally:
            self._opening = None
            if self._wire is None:
                accepted.close()
                self._connections.leave(self)

    # What asyncio tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with HTTP."""
        self._wire = cast("asyncio.Transport", transport)  # uvloop's own is none by name
        if self._tls and not self._tls.admits(transport.get_extra_info("peercert")):
            self._connections.handshake_failed(TlsFailure.NOT_ALLOWED, self.peer)
            self.force_close()
            self._wire.close()
            return
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Take what the client sends."""
        if self._answering:
            # Requests behind one that waits for its answer are held.
            self._ahead += len(data) if self._body.is_eof() else 0
            if self._ahead > MAX_AHEAD:
                self.abort()
                return
        elif not self._body.is_eof():
            self._ahead += len(data)
            if self._ahead > MAX_AHEAD and self._wire is not None:
                self._wire.pause_reading()
                return
        elif self._head_since is None:
            self._head_since = self._connections.loop.time()
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Note that it has ended."""
        self._wire = None
        self._connections.leave(self)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Note that the client is slower than its answer."""
        size = self._wire.get_write_buffer_size() if self._wire else 0
        self._stalled = (self._connections.loop.time(), size)
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that it has caught up."""
        self._stalled = None
        super().resume_writing()

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


def _failure(error: OSError, peer: str) -> tuple[TlsFailure, str, str]:
    """Return why a handshake failed, with whom, and what OpenSSL says."""
    if not isinstance(error, ssl.SSLError):
        return TlsFailure.CLOSED, peer, ""
    reason = error.reason or ""
    if "_ALERT_" in reason:
        kind = TlsFailure.CLIENT_REFUSED
    else:
        kind = _TLS_FAILURES.get(reason, TlsFailure.OTHER)
    problem = getattr(error, "verify_message", "") or reason.lower().replace("_", " ")
    return kind, peer, problem


def _address(peer: Any) -> str:  # Any: what asyncio has for this kind of socket
    if not isinstance(peer, tuple):
        return ""
    address = ip_address(peer[0].partition("%")[0])
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ip_network((address, 64), strict=False))
    return str(address)
