"""Notifications to systemd by sd_notify(3), for a unit with `Type=notify`."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Final

import structlog

STATUS_INTERVAL: Final = 10.0
"""The default interval of status reports, in seconds; a watchdog may require a shorter one."""

_log = structlog.get_logger(__name__)


class Notifier:
    """A client of systemd's notification socket; without a socket, all methods do nothing.

    Args:
        environ: contains the socket and the timeout of the watchdog. They are removed, so that
            child processes do not use them.

    Attributes:
        interval: seconds between heartbeats: at most half of the watchdog's timeout.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        self._watchdog = _watchdog(environ)
        self.interval = min(STATUS_INTERVAL, self._watchdog / 2 or STATUS_INTERVAL)
        self._socket: socket.socket | None = None
        self._reported = True
        if address[:1] in {"/", "@"}:
            # A leading `@` denotes an abstract socket, whose address starts with a zero byte.
            self._address = "\0" + address[1:] if address[0] == "@" else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    def ready(self, status: str) -> None:
        """Report that the start or a reload is complete."""
        self._send("READY=1", _status(status))

    def reloading(self) -> None:
        """Report the start of a reload; call `ready` at its end."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1", _status("stopping"))

    async def beat(self, status: Callable[[], str]) -> None:
        """Send heartbeats with the status, until cancelled."""
        while self._socket is not None:
            self._send(*(["WATCHDOG=1"] if self._watchdog else []), _status(status()))
            await asyncio.sleep(self.interval)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            if self._reported:
                _log.warning("systemd notification failed", problem=error.strerror)
            self._reported = False
        else:
            self._reported = True


def _watchdog(environ: MutableMapping[str, str]) -> float:
    """Return the seconds after which systemd considers this process dead; 0 for never."""
    microseconds = environ.pop("WATCHDOG_USEC", "")
    meant = environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(microseconds) / 1e6 if meant and microseconds.isdecimal() else 0.0


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())
