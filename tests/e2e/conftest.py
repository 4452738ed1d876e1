from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest_asyncio

from exporter.simulator import Account, Simulator


@pytest_asyncio.fixture
async def simulator() -> AsyncIterator[Simulator]:
    accounts = [Account(name, f"key-{name}", f"secret-{name}") for name in ("main", "other")]
    async with Simulator(accounts=accounts) as simulator:
        yield simulator


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session
