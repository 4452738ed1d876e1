from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from exporter.simulator import Account, Simulator
from tests.notify.bench import Bench, target
from tests.notify.receiver import Receiver


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


@pytest_asyncio.fixture
async def bench(receiver: Receiver, tmp_path: Path) -> AsyncIterator[Bench]:
    async with Simulator(accounts=[Account("main", "key", "s")]) as simulator:
        bench = Bench(simulator, tmp_path, target("t", receiver))
        await bench.start()
        yield bench
        await bench.stop()
