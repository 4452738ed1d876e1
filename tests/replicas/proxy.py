"""Between an exporter and its server of PostgreSQL: a network that is up to the test."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass
from typing import Self

from exporter.simulator import close_server


@dataclass(eq=False)
class _Link:
    """One connection, and what was said on it.

    Attributes:
        client: to the exporter.
        server: to the server.
        asked: the statement was seen whose commit is not to be answered.
        found: and what it is to have found.
        loses: the commit has been sent.
    """

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    asked: bool = False
    found: bool = False
    loses: bool = False

    def reset(self) -> None:
        """Break it at once, as a machine does that is gone."""
        for writer in (self.client, self.server):
            plug = writer.get_extra_info("socket")
            if plug.fileno() >= 0:  # it may be closed already
                plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Proxy:
    """Passes connections on, holds them up, refuses them, or loses an answer.

    Args:
        to: the port of the server.

    Attributes:
        port: where it listens.
        lost: how many answers were lost.
    """

    def __init__(self, to: int) -> None:
        self._to = to
        self._server: asyncio.Server | None = None
        self._flows = asyncio.Event()
        self._flows.set()
        self._refuses = False
        self._loses: tuple[bytes, bytes] | None = None
        self._links: dict[asyncio.Task[None], _Link | None] = {}
        self.port = 0
        self.lost = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await close_server(self._server)
        tasks = list(self._links)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def stall(self) -> None:
        """Hold everything up, without a word."""
        self._flows.clear()

    def refuse(self) -> None:
        """Break every connection, and each new one."""
        self._refuses = True
        for link in self._links.values():
            if link:
                link.reset()

    def heal(self) -> None:
        """Pass everything on, and what was held up first."""
        self._refuses = False
        self._flows.set()

    def lose_commit_of(self, statement: str, found: str = "") -> None:
        """Break a connection instead of telling that a transaction is committed.

        Args:
            statement: a part of one of its statements.
            found: a part of what that has to find.
        """
        self._loses = statement.encode(), found.encode()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._pass_on(reader, writer))
        self._links[task] = None
        task.add_done_callback(self._links.pop)
        # Also of a task that was cancelled before it began, or while it connected.
        task.add_done_callback(lambda _: writer.transport.abort())

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            there, further = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            return  # no server
        link = self._links[task] = _Link(writer, further)
        try:
            if not self._refuses:
                ways = (self._questions(reader, link), self._answers(there, link))
                await asyncio.gather(*ways)
        except OSError:
            pass  # either end has broken it
        finally:
            link.reset()

    async def _questions(self, reader: asyncio.StreamReader, link: _Link) -> None:
        while data := await reader.read(1 << 16):
            await self._flows.wait()
            if self._loses and self._loses[0] in data:
                link.asked = True
            if b"COMMIT" in data:
                if self._loses and link.found:
                    link.loses, self._loses = True, None
                link.asked = link.found = False
            link.server.write(data)
            await link.server.drain()
        link.reset()

    async def _answers(self, reader: asyncio.StreamReader, link: _Link) -> None:
        while data := await reader.read(1 << 16):
            await self._flows.wait()
            if link.loses:
                self.lost += 1
                break
            if link.asked and self._loses and self._loses[1] in data:
                link.found = True
            link.client.write(data)
            await link.client.drain()
        link.reset()
