"""An event loop whose time passes only when nothing is left to do: days in seconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, Final, TypeVar
from unittest import mock

R = TypeVar("R")

EPOCH: Final = 1_764_000_000.0
"""Unix time at which virtual time begins."""


class _Selector(selectors.SelectSelector):
    """Waits for no file: it has the time pass that the loop would sleep."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits for something that never comes")
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop with a clock of its own, which is that of the poller too, inside `run`."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Return the virtual seconds since the loop was made."""
        return self._virtual.now


class _Time:
    """What the poller needs of the module `time`."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.monotonic = loop.time
        self._loop = loop

    def time(self) -> float:
        return EPOCH + self._loop.time()


def run(main: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine, and the pollers that it makes, in virtual time; returns what it returns."""
    loop = VirtualLoop()
    with (
        mock.patch("exporter.polling.poller.time", _Time(loop)),
        asyncio.Runner(loop_factory=lambda: loop) as runner,
    ):
        return runner.run(main)
