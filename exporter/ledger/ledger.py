"""The asynchronous interface to the ledger: runs statements in a thread, commits in groups."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Concatenate, Final, ParamSpec, TypeAlias, TypeVar

import structlog
from sqlalchemy import Connection

from exporter.backoff import ExponentialBackoff
from exporter.calls import Finished, PollAgain, WatchedCall
from exporter.errors import LedgerError, SourceError
from exporter.ledger.clock import Clocks, LedgerClock
from exporter.ledger.engine import Database, open_database
from exporter.ledger.store import Store
from exporter.ledger.types import (
    BATCH_SIZE,
    CallRecord,
    Committed,
    Observation,
)
from exporter.threads import SerialThread

P = ParamSpec("P")
R = TypeVar("R")
Subscriber: TypeAlias = Callable[[Collection[Observation], Committed], None]

# Seconds to collect observations before a commit. A commit waits for the disk, so committing many
# observations costs little more than committing one.
_BATCH_DELAY: Final = 0.1
_HEALTH_CHECK_INTERVAL: Final = 5.0
_CLOCK_SYNC_INTERVAL: Final = 60.0
_RETRY: Final = ExponentialBackoff(0.5, 30.0)
# Seconds without an answer after which `Ledger.problem` reports it.
_RESPONSE_TIMEOUT: Final = 10.0

_log = structlog.get_logger(__name__)


class Ledger:
    """The durable record of calls and totals. Its coroutines raise `LedgerError`.

    Observations that cannot be committed are kept and retried in the background.

    Args:
        clocks: reads the machine's clocks.
        observe_commit: called with the duration of each commit of observations, in seconds.
        retry: seconds until a failed commit is retried.
        health_check: seconds between checks of an idle ledger.

    Attributes:
        clock: the clock of all times in the ledger and of its calls.
        errors: the number of failed transactions; some of them may have been committed.
    """

    def __init__(
        self,
        clocks: Clocks | None = None,
        observe_commit: Callable[[float], None] = lambda _seconds: None,
        retry: ExponentialBackoff = _RETRY,
        health_check: float = _HEALTH_CHECK_INTERVAL,
    ) -> None:
        self.clock = LedgerClock(clocks)
        self._thread = SerialThread("ledger")
        self._reader = SerialThread("ledger reader")
        self._waiting = deque[float]()  # start times of the pending `call`s
        self._store: Store | None = None
        self._subscribers: list[Subscriber] = []
        self._observe_commit = observe_commit
        self._retry, self._health_check = retry, health_check
        self.errors = 0
        self._pending: dict[int, Observation] = {}
        self._observed = asyncio.Event()
        self._closing = False
        self._problem: str | None = "the ledger is not open yet"

    @property
    def problem(self) -> str | None:
        """The reason why the ledger cannot be used now; None when it can."""
        waited = time.monotonic() - self._waiting[0] if self._waiting else 0.0
        if self._problem is None and waited > _RESPONSE_TIMEOUT:
            return "the ledger does not answer"
        return self._problem

    async def open(self, url: str) -> None:
        """Open the database; see `open_database`."""

        def open_store() -> Store:
            database = open_database(url)
            database.keep_time(self.clock, opened=True)
            return Store(database, self.clock)

        self._store = await self.call(open_store)
        self._problem = None

    @property
    def store(self) -> Store:
        """The exporter's ledger state. Its methods block: run them with `call`."""
        if self._store is None:
            raise LedgerError("the ledger is not open")
        return self._store

    @property
    def database(self) -> Database:
        """The open database. Its methods block: run them with `call`."""
        return self.store.database

    async def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a blocking function in the ledger's thread."""
        self._waiting.append(time.monotonic())
        try:
            return await self.call_in(self._thread, function, *args, **kwargs)
        finally:
            self._waiting.popleft()

    async def call_in(
        self, thread: SerialThread, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run a blocking function in the given thread; see `call`."""
        try:
            return await _result(thread.submit(partial(function, *args, **kwargs)))
        except LedgerError:
            self.errors += 1
            raise

    async def execute(
        self, statements: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run a function of a connection in a transaction, in the ledger's thread."""
        return await self.call(partial(self.database.run, statements, *args, **kwargs))

    async def read(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function that uses `Database.read` in a separate thread.

        The function runs to its end even if the caller is cancelled. Its errors are not counted.
        """
        if self._store is None:
            raise LedgerError("the ledger is not open")
        return await _result(self._reader.submit(partial(function, *args, **kwargs)))

    def to_machine_time(self, call: CallRecord) -> CallRecord:
        """Return a call with its times converted to the machine's clock."""
        if not (ahead := self.clock.ahead):
            return call
        call = call._replace(first_watched=call.first_watched - ahead)
        if call.finished_at is not None:
            call = call._replace(finished_at=call.finished_at - ahead)
        return call

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call a function with observations and the changes by them, once they are durable."""
        self._subscribers.append(subscriber)

    async def commit(self, observations: Sequence[Observation]) -> Committed:
        """Commit observations at once; see `Store.commit`."""
        committed = await self.call(self.store.commit, observations)
        self._publish(observations, committed)
        return committed

    def _publish(self, observations: Collection[Observation], committed: Committed) -> None:
        for subscriber in self._subscribers:
            subscriber(observations, committed)

    def record(
        self, account: str, call: WatchedCall, verdict: Finished | PollAgain, at: float
    ) -> None:
        """Queue the verdict on a call for the next commit."""
        pending = self._pending.get(call.id)
        if pending is None:
            if isinstance(verdict, PollAgain) and verdict.state is call.state:
                return  # nothing new
        elif isinstance(pending.verdict, Finished):
            return  # a finished call stays finished
        self._pending[call.id] = Observation(account, call, verdict, at)
        self._observed.set()

    def is_pending(self, call: int) -> bool:
        """Whether an observation of a call is not committed yet."""
        return call in self._pending

    async def run(self) -> None:
        """Commit recorded observations in groups until `close_soon` is called."""
        failures, sync_at, ahead = 0, 0.0, self.clock.ahead
        while not (self._closing and not self._pending):
            with suppress(TimeoutError):
                async with asyncio.timeout(self._health_check):
                    await self._observed.wait()
            if self._pending and not self._closing and len(self._pending) < BATCH_SIZE:
                await asyncio.sleep(_BATCH_DELAY)
            if not await self._flush():
                failures += 1
                await asyncio.sleep(self._retry.wait(failures))
                continue
            failures = 0
            self.clock.now()  # detects changes of the machine's clock
            # Store a change at once: after a reboot it could not be detected.
            if time.monotonic() >= sync_at or self.clock.ahead != ahead:
                with suppress(LedgerError):  # the next commit reports a broken ledger
                    noticed = self.clock.ahead
                    await self.call(self.database.keep_time, self.clock)
                    ahead = noticed
                sync_at = time.monotonic() + _CLOCK_SYNC_INTERVAL

    def close_soon(self) -> None:
        """End `run` once all recorded observations are committed."""
        self._closing = True
        self._observed.set()

    async def close(self, timeout: float | None = None) -> None:
        """Close the database, waiting for it up to `timeout` seconds."""
        store, self._store = self._store, None  # later calls fail at once
        if store is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self.call(store.database.close)
        self._thread.close()
        self._reader.close()

    async def _flush(self) -> bool:
        # Take the oldest ones; after an outage of the ledger there may be many.
        group = dict(islice(self._pending.items(), BATCH_SIZE))
        if len(group) == len(self._pending) and not self._closing:
            self._observed.clear()
        started = time.perf_counter()
        try:
            # Commit empty groups too: this proves that the ledger can be written.
            committed = await self.call(self.store.commit, list(group.values()))
        except LedgerError as error:
            self._observed.set()
            if self._problem is None:
                _log.error("ledger write failed", problem=str(error))
            self._problem = str(error)
            return False
        if self._problem is not None:
            _log.info("ledger writes recovered")
        self._problem = None
        for call_id, observation in group.items():
            if self._pending[call_id] is observation:  # no newer one
                del self._pending[call_id]
        if group:
            self._observe_commit(time.perf_counter() - started)
            self._publish(group.values(), committed)
        return True


async def _result(done: asyncio.Future[R]) -> R:
    try:
        return await done
    except SourceError as error:  # no thread can be started
        raise LedgerError(f"ledger: {error}") from None
