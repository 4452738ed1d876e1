from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest_asyncio
import uvloop

from tests.web.bench import Bench


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    # What is tested here lives by the loop's transports: those that the exporter has.
    return {"uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture
async def idle(tmp_path: Path) -> AsyncIterator[Bench]:
    """Yield a bench whose exporter is not started."""
    async with Bench(tmp_path) as bench:
        yield bench


@pytest_asyncio.fixture
async def bench(idle: Bench) -> Bench:
    """Return a bench whose exporter and server are started."""
    await idle.start()
    return idle
