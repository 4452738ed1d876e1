"""Pollers in virtual time, which passes when nothing is left to do: no machine is too busy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from benchmarks.virtual_time import VirtualLoop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Return what asynchronous tests run in."""
    return {"virtual": VirtualLoop}
