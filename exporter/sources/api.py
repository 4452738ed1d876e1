"""The source `api`: programs push calls through the HTTP API."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from exporter.config import WatchConfig
from exporter.errors import LedgerError, NoRoomError
from exporter.ledger.records import CHUNK, Count, NewCall
from exporter.sources.source import CallSink, Source, SourceContext

MAX_WAITING: Final = 100_000
"""Calls that may wait for the ledger; further requests are asked to come back."""


class ApiSource(Source):
    """Takes the calls of requests to the HTTP API."""

    name = "api"

    def __init__(self, sink: CallSink) -> None:
        super().__init__(sink)
        self._queue = PushQueue(sink)

    async def configure(self, watch: WatchConfig, _context: SourceContext) -> None:
        """Expose the metrics of the source where there are tokens."""
        self._status.configure(shown=bool(watch.api.tokens))

    async def run(self) -> None:
        """Store what is pushed, until cancelled."""
        await self._queue.run()

    async def push(self, calls: Sequence[NewCall]) -> Count:
        """Watch the calls of a request, all of them or none; return once they are durable.

        Raises:
            NoRoomError: there are too many.
            LedgerError: the ledger failed, or is closed.
        """
        try:
            count = await self._queue.push(calls)
        except (LedgerError, NoRoomError):
            self._status.count_error()
            raise
        self._status.succeed()
        return count

    def refused(self) -> None:
        """Count a request whose calls could not be read."""
        self._status.count_error()


class _Request(NamedTuple):
    calls: Sequence[NewCall]
    done: asyncio.Future[Count]


class PushQueue:
    """Groups the calls of requests that arrive while the ledger is busy with earlier ones.

    A thousand requests per second then need far fewer commits.

    Args:
        sink: stores the calls of requests, and returns once they are durable.
        limit: calls that may wait.
    """

    def __init__(self, sink: CallSink, limit: int = MAX_WAITING) -> None:
        self._sink = sink
        self._limit = limit
        self._waiting: deque[_Request] = deque()
        self._size = 0
        self._filled = asyncio.Event()
        self._closed = False

    async def push(self, calls: Sequence[NewCall]) -> Count:
        """Store calls, all of them or none; return once they are durable.

        Raises:
            NoRoomError: there are too many.
            LedgerError: the ledger failed, or is closed.
        """
        if self._closed:
            raise LedgerError("the exporter is stopping")
        if self._size and self._size + len(calls) > self._limit:
            raise NoRoomError("the ledger cannot keep up", 1)
        request = _Request(calls, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._size += len(calls)
        self._filled.set()
        return await request.done

    async def run(self) -> None:
        """Store what is pushed, until cancelled; what waits then is refused."""
        group: list[_Request] = []
        try:
            while True:
                await self._filled.wait()
                group = self._next_group()
                await self._store(group)
        finally:
            self._closed = True
            for request in (*group, *self._waiting):
                _finish(request, LedgerError("the exporter is stopping"))

    def _next_group(self) -> list[_Request]:
        group: list[_Request] = []
        size = 0
        while self._waiting and (not group or size + len(self._waiting[0].calls) <= CHUNK):
            group.append(self._waiting.popleft())
            size += len(group[-1].calls)
        self._size -= size
        if not self._waiting:
            self._filled.clear()
        return group

    async def _store(self, group: Sequence[_Request]) -> None:
        try:
            counts = await self._sink.push([request.calls for request in group])
        except LedgerError as error:
            for request in group:
                # One each: a traceback is written into an exception where it is raised.
                _finish(request, LedgerError(str(error)))
            return
        for request, count in zip(group, counts, strict=True):
            if isinstance(count, str):
                full = f"account {count}: `watch.max_calls` is reached"
                _finish(request, NoRoomError(full, 60))
            else:
                _finish(request, count)


def _finish(request: _Request, result: Count | Exception) -> None:
    if request.done.done():
        return  # the client is gone
    if isinstance(result, Exception):
        request.done.set_exception(result)
    else:
        request.done.set_result(result)
