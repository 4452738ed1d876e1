from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from exporter.config import HomeAssistantConfig
from exporter.simulator import Simulator
from tests.brokers import Listener, Mosquitto, listening
from tests.notify.bench import ACCOUNTS, Bench

# For those who have one: a Python with `homeassistant` 2024.11 or newer, named by this variable.
collect_ignore = [] if os.environ.get("HOME_ASSISTANT_PYTHON") else ["test_real.py"]


@pytest_asyncio.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(accounts=ACCOUNTS) as it:
        yield it


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as broker:
        yield broker


@pytest_asyncio.fixture
async def bench(simulator: Simulator, broker: Mosquitto, tmp_path: Path) -> AsyncIterator[Bench]:
    config = HomeAssistantConfig(url=broker.url)
    async with Bench(simulator, tmp_path, home_assistant=config) as bench:
        yield bench


@pytest_asyncio.fixture
async def listener(broker: Mosquitto) -> AsyncIterator[Listener]:
    async with listening(broker.port) as listener:
        yield listener
