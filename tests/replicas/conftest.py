from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.databases import Server, postgresql
from tests.replicas.scene import Scene


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    with postgresql() as server:
        yield server


@pytest_asyncio.fixture
async def scene(server: Server) -> AsyncIterator[Scene]:
    with server.database() as url:
        async with Scene(url) as scene:
            yield scene
