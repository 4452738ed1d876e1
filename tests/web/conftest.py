from __future__ import annotations

import asyncio
from collections.abc import Callable

import uvloop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    # What is tested here lives by the loop's transports: those that the exporter has.
    return {"uvloop": uvloop.new_event_loop}
