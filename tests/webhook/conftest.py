from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from exporter.simulator import Account, Simulator
from exporter.webhook import sender
from tests.webhook.bench import Bench, target
from tests.webhook.receiver import Receiver


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look, count and try again within moments."""
    for name, seconds in (
        ("_LOOK_EVERY", 0.3),
        ("_COUNT_EVERY", 0.1),
        ("_LEDGER_RETRY", 0.1),
        ("_FIRST", 0.2),
        ("_REST_FIRST", 0.2),
        ("_REST_LONGEST", 0.5),
    ):
        monkeypatch.setattr(sender, name, seconds)


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
