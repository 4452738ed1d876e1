from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from exporter.backoff import ExponentialBackoff
from exporter.notify import breaker, sender
from exporter.simulator import Account, Simulator
from tests.notify.bench import Bench, target
from tests.notify.receiver import Receiver


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look, count and try again within moments."""
    for module, name, value in (
        (sender, "_LOOK_EVERY", 0.3),
        (sender, "_COUNT_EVERY", 0.1),
        (sender, "_LEDGER_RETRY", 0.1),
        (sender, "_RETRIES", ExponentialBackoff(0.2, 900.0, jitter=0.25)),
        (breaker, "_PAUSE", ExponentialBackoff(0.2, 0.5, jitter=0.25)),
    ):
        monkeypatch.setattr(module, name, value)


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


@pytest_asyncio.fixture
async def bench(quick: None, receiver: Receiver, tmp_path: Path) -> AsyncIterator[Bench]:
    async with Simulator(accounts=[Account("main", "key", "s")]) as simulator:
        bench = Bench(simulator, tmp_path, target("t", receiver))
        await bench.start()
        yield bench
        await bench.stop()
