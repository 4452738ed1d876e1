"""What comes in one turn of the event loop, worked off together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Together(Generic[T]):
    """Gathers what comes until the turn ends.

    Done one by one, between the steps of an HTTP client, the same work takes twice as long: the
    processor's caches hold either the one or the other.

    Args:
        loop: whose turns they are.
        work: is called with what has come, in that order.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[list[T]], None]) -> None:
        self._loop = loop
        self._work = work
        self._items: list[T] = []

    def add(self, item: T) -> None:
        """Have it worked off when the turn ends."""
        if not self._items:
            self._loop.call_soon(self.flush)
        self._items.append(item)

    def flush(self) -> None:
        """Work off now what has come."""
        items, self._items = self._items, []
        if items:
            self._work(items)
