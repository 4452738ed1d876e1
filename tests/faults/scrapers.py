"""Scrapers that do what they should not."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from urllib.parse import urlsplit

from tests.faults.scene import Scene

SCRAPERS = 50
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: exporter\r\n\r\n"
PIPELINED = 100
"""Requests whose answers together are more than the kernel holds for a connection."""


async def connect(scene: Scene) -> socket.socket:
    address = urlsplit(scene.exporter.url)
    connection = socket.socket()
    # Before it is connected, so that the peer learns of it.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (address.hostname, address.port))
    return connection


async def many_at_once(scene: Scene) -> None:
    before = scene.scrapes.newest
    found = await asyncio.gather(*(scene.exporter.scrape() for _ in range(SCRAPERS)))
    assert all(len(samples) >= len(before) for samples in found)


async def leaving_in_the_middle(scene: Scene) -> None:
    loop = asyncio.get_running_loop()

    async def leave() -> None:
        with await connect(scene) as connection:
            await loop.sock_sendall(connection, REQUEST * 2)
            await loop.sock_recv(connection, 512)

    await asyncio.gather(*(leave() for _ in range(SCRAPERS)))


async def never_reading(scene: Scene) -> None:
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        for _ in range(SCRAPERS):
            connection = stack.enter_context(await connect(scene))
            await loop.sock_sendall(connection, REQUEST * PIPELINED)
        await asyncio.sleep(5)
        # Others get their answers meanwhile.
        await scene.exporter.scrape()
