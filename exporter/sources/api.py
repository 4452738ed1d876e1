"""The watch source of the HTTP API: `watch.api`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from exporter.errors import LedgerError, NoRoomError
from exporter.ledger.records import CHUNK, Count, NewCall

SOURCE: Final = "api"
"""The source's name in metrics."""

MAX_WAITING: Final = 100_000
"""Calls that may wait for the ledger; beyond, who hands them over is asked to come back."""

Store = Callable[[Sequence[Sequence[NewCall]]], Awaitable[Sequence[Count | str]]]
"""Returns how many were added, or the account that has no room for them."""


class _Request(NamedTuple):
    calls: Sequence[NewCall]
    done: asyncio.Future[Count]


class Inbox:
    """Gathers the calls of requests, while the ledger is busy with those that came before them.

    So a thousand requests per second need far fewer commits.

    Args:
        store: stores the calls of requests, and returns once they are durable.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[_Request] = deque()
        self._size = 0
        self._filled = asyncio.Event()
        self._closed = False

    async def put(self, calls: Sequence[NewCall]) -> Count:
        """Have calls stored, all of them or none; returns once they are durable.

        Raises:
            NoRoomError: there are too many.
            LedgerError: the ledger failed, or is closed.
        """
        if self._closed:
            raise LedgerError("the exporter is stopping")
        if self._size and self._size + len(calls) > MAX_WAITING:
            raise NoRoomError("the ledger cannot keep up", 1)
        request = _Request(calls, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._size += len(calls)
        self._filled.set()
        return await request.done

    async def run(self) -> None:
        """Store what comes in, until it is cancelled; what waits then is refused."""
        group: list[_Request] = []
        try:
            while True:
                await self._filled.wait()
                group = self._take()
                await self._keep(group)
        finally:
            self._closed = True
            for request in (*group, *self._waiting):
                if not request.done.done():
                    request.done.set_exception(LedgerError("the exporter is stopping"))

    def _take(self) -> list[_Request]:
        group: list[_Request] = []
        size = 0
        while self._waiting and (not group or size + len(self._waiting[0].calls) <= CHUNK):
            group.append(self._waiting.popleft())
            size += len(group[-1].calls)
        self._size -= size
        if not self._waiting:
            self._filled.clear()
        return group

    async def _keep(self, group: Sequence[_Request]) -> None:
        try:
            counts = await self._store([request.calls for request in group])
        except LedgerError as error:
            for request in group:
                # One each: a traceback is written into an exception, where it is raised.
                _end(request, LedgerError(str(error)))
            return
        for request, count in zip(group, counts, strict=True):
            if isinstance(count, str):
                full = f"account {count}: `watch.max_calls` is reached"
                _end(request, NoRoomError(full, 60))
            else:
                _end(request, count)


def _end(request: _Request, end: Count | Exception) -> None:
    if request.done.done():
        return  # who asked is gone
    if isinstance(end, Exception):
        request.done.set_exception(end)
    else:
        request.done.set_result(end)
