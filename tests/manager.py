"""Somebody who listens as systemd does: a datagram socket, and what came to it."""

from __future__ import annotations

import asyncio
import socket
from typing import Self

from tests.waiting import deadline


class Manager:
    """A socket as `NOTIFY_SOCKET` names one.

    Args:
        address: as in the variable: a path, or `@` and a name.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)

    async def told(self) -> list[str]:
        """Return the lines of the next datagram."""
        async with deadline():
            data = await asyncio.get_running_loop().sock_recv(self.socket, 65536)
        return data.decode().split("\n")

    async def until(self, line: str) -> list[str]:
        """Return the lines of the next datagram that holds this one."""
        async with deadline():
            while line not in (lines := await self.told()):
                pass
        return lines

    def drop_all(self) -> int:
        """Forget what has come; returns how much it was."""
        count = 0
        while True:
            try:
                self.socket.recv(65536)
            except BlockingIOError:
                return count
            count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
