"""The source `api`: calls that programs add through the HTTP API."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeAlias

from exporter.config import WatchConfig
from exporter.errors import CapacityError, LedgerError
from exporter.ledger.types import BATCH_SIZE, Count, NewCall
from exporter.sources.source import Source, SourceContext
from exporter.tracker import CallTracker

MAX_WAITING: Final = 100_000
"""Limit of calls waiting for the ledger; further requests get a `CapacityError`."""

_STOPPING: Final = "the exporter is stopping"

_Request: TypeAlias = "tuple[Sequence[NewCall], asyncio.Future[Count | str]]"


class PushSource(Source):
    """Stores the calls of requests: all that arrive during a commit share the next commit."""

    def __init__(self, tracker: CallTracker, limit: int = MAX_WAITING) -> None:
        super().__init__(tracker)
        self._limit = limit
        self._waiting = asyncio.Queue[_Request]()
        self._size = 0
        self._closed = False

    async def run(self) -> None:
        """Store pushed calls until cancelled; then fail the waiting requests."""
        group: list[_Request] = []
        try:
            while True:
                group = [await self._waiting.get()]
                size = len(group[0][0])
                while size < BATCH_SIZE and not self._waiting.empty():
                    group.append(self._waiting.get_nowait())
                    size += len(group[-1][0])
                self._size -= size
                try:
                    counts = await self._tracker.push([calls for calls, _ in group])
                except LedgerError as error:
                    _fail(group, str(error))
                    continue
                for (_, done), count in zip(group, counts, strict=True):
                    if not done.done():  # the request was not cancelled
                        done.set_result(count)
        finally:
            self._closed = True
            while not self._waiting.empty():
                group.append(self._waiting.get_nowait())
            _fail(group, _STOPPING)

    async def _push(self, calls: Sequence[NewCall]) -> Count:
        """Store calls; see `ApiSource.push`."""
        if self._closed:
            raise LedgerError(_STOPPING)
        if self._size and self._size + len(calls) > self._limit:
            raise CapacityError("the ledger cannot keep up", 1)
        done: asyncio.Future[Count | str] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((calls, done))
        self._size += len(calls)
        count = await done
        if isinstance(count, str):
            raise CapacityError(f"account {count}: `watch.max_calls` is reached", 60)
        return count

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the outcome of a request."""
        try:
            yield
        except (LedgerError, CapacityError):
            self._status.count_error()
            raise
        self._status.succeed()


def _fail(group: Iterable[_Request], problem: str) -> None:
    for _, done in group:
        if not done.done():
            # One exception for each future, because raising an exception changes its traceback.
            done.set_exception(LedgerError(problem))


class ApiSource(PushSource):
    """Adds the calls of requests to the HTTP API."""

    name = "api"

    async def configure(self, watch: WatchConfig, _context: SourceContext) -> None:
        """Show metrics of the source if tokens are configured."""
        self._status.configure(shown=bool(watch.api.tokens))

    async def push(self, calls: Sequence[NewCall]) -> Count:
        """Add the calls of a request, all or none, and return once they are durable.

        Raises `CapacityError` if a limit is reached, and `LedgerError`.
        """
        with self._counted():
            return await self._push(calls)

    def refused(self) -> None:
        """Count a request with invalid calls."""
        self._status.count_error()
