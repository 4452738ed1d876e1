from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from exporter.simulator import Simulator
from tests.notify.bench import ACCOUNTS, Bench, target
from tests.notify.receiver import Receiver
from tests.notify.virtual import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


@pytest_asyncio.fixture
async def bench(receiver: Receiver, tmp_path: Path) -> AsyncIterator[Bench]:
    async with (
        Simulator(accounts=ACCOUNTS) as simulator,
        Bench(simulator, tmp_path, notify=(target("t", receiver),)) as bench,
    ):
        yield bench
