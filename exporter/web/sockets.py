"""Listening sockets: created for addresses, or passed by systemd."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from exporter.errors import ExporterError

_FIRST_DESCRIPTOR: Final = 3
_FAMILIES: Final = {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}
_BACKLOG: Final = 511
# Raised by a kernel without IPv6, and by one with IPv6 disabled.
_NO_SUCH_FAMILY: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """An address to listen on; an empty host means all interfaces."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `:10375`, `127.0.0.1:10375` or `[::1]:10375`, or raise `ValueError`."""
        found = re.fullmatch(r"(?:\[(.*)\]|([^:]*)):([0-9]+)", text)
        host = (found[1] or found[2] or "") if found else ""
        with suppress(UnicodeError):
            host.encode("idna")  # as the look-up of its address does
            if found and int(found[3]) <= 65535:
                return cls(host, int(found[3]))
        raise ValueError("expected `:10375`, `127.0.0.1:10375` or `[::1]:10375`")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def systemd_sockets(environ: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """Return the sockets that systemd passed to this process: sd_listen_fds(3).

    Removes the environment variables, so that child processes do not use the sockets. Raises
    `ExporterError` if there are none, or one does not listen.
    """
    names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    pid, count, _ = (environ.pop(name, "") for name in names)
    if pid != str(os.getpid()) or not count.isdigit() or int(count) < 1:
        raise ExporterError(
            "no socket activation file descriptors found; start the exporter with a systemd socket "
            "unit, or remove --web.systemd-socket"
        )
    sockets = []
    for descriptor in range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count)):
        try:
            os.set_inheritable(descriptor, False)
            sockets.append(socket.socket(fileno=descriptor))
            listens = sockets[-1].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:
            listens = False
        if not listens or sockets[-1].family not in _FAMILIES:
            raise ExporterError("a systemd socket does not listen; set `ListenStream=` in its unit")
    return sockets


def listen(addresses: Iterable[ListenAddress]) -> list[socket.socket]:
    """Return listening sockets for addresses, or raise `ExporterError`."""
    sockets: list[socket.socket] = []
    for address in addresses:
        try:
            sockets += _bound(address)
        except OSError as error:
            for listener in sockets:
                listener.close()
            # Leave out the address, which Python adds to some messages.
            number = error.errno or 0
            reason = os.strerror(number).lower() if number > 0 else error.strerror
            raise ExporterError(
                f"cannot listen on {address}: {reason or 'cannot be used'}; "
                "stop the program that uses it, or choose another --web.listen-address"
            ) from None
    return sockets


def _bound(address: ListenAddress) -> Iterator[socket.socket]:
    dual = not address.host and socket.has_dualstack_ipv6()
    if address.host:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        hosts = dict.fromkeys((family, str(resolved[0])) for family, *_, resolved in found)
    else:
        hosts = {(socket.AF_INET6 if dual else socket.AF_INET, ""): None}
    missing = []
    for family, host in hosts:
        at = host, address.port
        try:
            yield socket.create_server(at, family=family, backlog=_BACKLOG, dualstack_ipv6=dual)
        except OSError as error:
            # A host name may have addresses of a family that this machine does not support.
            if error.errno not in _NO_SUCH_FAMILY:
                raise
            missing.append(error)
    if len(missing) == len(hosts):
        raise missing[0]


def url_of(listener: socket.socket, scheme: str) -> str:
    """Return the URL of a socket with its real port, such as `http://127.0.0.1:10375`."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, host)  # noqa: S104 - shown
    return f"{scheme}://{ListenAddress(host, port)}"
