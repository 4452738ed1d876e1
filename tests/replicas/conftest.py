from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.databases import Server
from tests.replicas.scene import Scene


@pytest_asyncio.fixture
async def scene(server: Server) -> AsyncIterator[Scene]:
    with server.database() as url:
        async with Scene(url) as scene:
            yield scene
