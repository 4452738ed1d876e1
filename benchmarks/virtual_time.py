"""An event loop whose time passes only when nothing is left to do: days in seconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

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
    """A loop with a clock of its own."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Return the virtual seconds since the loop was made."""
        return self._virtual.now


def wall() -> float:
    """Return the virtual Unix time."""
    return EPOCH + asyncio.get_running_loop().time()


def run(main: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine in virtual time; return what it returns."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
