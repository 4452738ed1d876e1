"""Pollers in virtual time, which passes when nothing is left to do: no machine is too busy."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import pytest_asyncio

from benchmarks.virtual_time import VirtualLoop
from tests.polling.scene import Scene


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Return what asynchronous tests run in."""
    return {"virtual": VirtualLoop}


@pytest_asyncio.fixture
async def scene() -> AsyncIterator[Scene]:
    """An account whose poller makes the same choices each time."""
    random.seed(1)
    scene = Scene()
    yield scene
    await scene.poller.stop(1)
    assert not scene.failures
