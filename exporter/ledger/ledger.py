"""The ledger as the event loop sees it: a thread of its own, and commits in groups."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import suppress
from itertools import islice
from typing import Concatenate, Final, ParamSpec, TypeVar

import structlog
from sqlalchemy import Connection

from exporter.backoff import ExponentialBackoff
from exporter.calls import Finished, PollAgain, WatchedCall
from exporter.errors import LedgerError, SourceError
from exporter.ledger.calls import Past, recent_calls
from exporter.ledger.clock import Clocks, LedgerClock, machine_clocks
from exporter.ledger.engine import open_database
from exporter.ledger.store import Store
from exporter.ledger.types import (
    BATCH_SIZE,
    CallRecord,
    Committed,
    FinishedCall,
    InsertResult,
    NewCall,
    Observation,
    Snapshot,
)
from exporter.threads import SerialThread

P = ParamSpec("P")
R = TypeVar("R")
Call = TypeVar("Call", CallRecord, FinishedCall)

# Seconds that observations gather before they are committed: a commit has to reach the disk, so
# that one for many costs little more than one for one.
_GATHER: Final = 0.1
# Seconds after which an idle ledger is looked at: a problem is to show before it matters.
_PROVE_EVERY: Final = 5.0
# Seconds after which the ledger's clock is looked after.
_KEEP_TIME_EVERY: Final = 60.0
_RETRY: Final = ExponentialBackoff(0.5, 30.0)
# Seconds after which a ledger that was asked something is taken for one that cannot be used.
_SLOW: Final = 10.0

_log = structlog.get_logger(__name__)


class Ledger:
    """The durable record of watched calls and totals.

    Args:
        committed: called in the event loop with each group of observations once it is durable.
        clocks: reads those of the machine.
        observe_commit: called with the seconds that each commit of observations took.

    Attributes:
        clock: the clock of every time in the ledger, and of the calls that it holds.
        errors: how many reads and writes failed; each may have been executed.

    Observations that cannot be committed are kept and tried again; nothing else waits for them.
    """

    def __init__(
        self,
        committed: Callable[[Iterable[Observation], Committed], None],
        clocks: Clocks | None = None,
        observe_commit: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self.clock = LedgerClock(clocks or machine_clocks())
        self._thread = SerialThread("ledger")
        self._reader = SerialThread("ledger reader")
        self._asked = deque[float]()  # when what the thread has still to do was asked for
        self._store: Store | None = None
        self._committed = committed
        self._observe_commit = observe_commit
        self.errors = 0
        self._pending: dict[int, Observation] = {}
        self._observed = asyncio.Event()
        self._closing = False
        self._problem: str | None = "the ledger is not open yet"

    @property
    def problem(self) -> str | None:
        """Why the ledger cannot be used now, if it cannot."""
        if self._problem is None and self._asked and time.monotonic() - self._asked[0] > _SLOW:
            return "the ledger does not answer"
        return self._problem

    async def open(self, url: str) -> None:
        """Open the database at an SQLAlchemy URL, and bring it to the newest shape.

        Raises:
            LedgerError: it cannot be used; the message says what to do.
        """
        self.database = await self._run(lambda: open_database(url))
        await self._run(lambda: self.database.keep_time(self.clock, opened=True))
        self._store = await self._run(lambda: Store(self.database, self.clock))
        self._problem = None

    @property
    def store(self) -> Store:
        """The exporter's state between statements; its methods are for `call`."""
        if self._store is None:
            raise LedgerError("the ledger is not open")
        return self._store

    async def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one of the store's methods in the ledger's thread.

        Raises:
            LedgerError: the database failed.
        """
        try:
            return await self._run(lambda: function(*args, **kwargs))
        except LedgerError:
            self.count_error()
            raise

    async def execute(
        self,
        statements: Callable[Concatenate[Connection, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run statements, a function of a connection, in a transaction in the ledger's thread.

        Raises:
            LedgerError: the database failed.
        """
        store = self.store
        return await self.call(lambda: store.run(statements, *args, **kwargs))

    def count_error(self) -> None:
        """Count a read or a write that failed."""
        self.errors += 1

    async def read(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function that reads with `Database.read`, in a thread of its own.

        It is finished even if this is cancelled. The thread of `call` does not wait for it.

        Raises:
            LedgerError: the database failed, or took too long.
        """
        if self._store is None:
            raise LedgerError("the ledger is not open")
        return await _result(self._reader.submit(lambda: function(*args, **kwargs)))

    async def watch(
        self, source: str | None, new: Iterable[NewCall], max_calls: float = math.inf
    ) -> AsyncIterator[InsertResult]:
        """Add calls, however many; yield batch by batch what `Store.watch` returns.

        Commits get their turn in between, and the calls are never held all at a time.
        """
        calls = iter(new)
        while chunk := list(islice(calls, BATCH_SIZE)):
            yield await self.call(self.store.watch, source, chunk, self.clock.now(), max_calls)

    async def past(self, names: Collection[str], since: float) -> tuple[Snapshot, Past]:
        """Return the totals of accounts, and what has finished since a Unix time.

        Both as of one moment: what was committed before is in it, what is committed after is not.
        """
        ahead, store = self.clock.ahead, self.store
        snapshot, past = await self.call(
            lambda: (store.snapshot(names), store.run(recent_calls, since + ahead, names))
        )
        return snapshot, Past(list(map(self.shown, past.calls)), past.since - ahead)

    def shown(self, call: Call) -> Call:
        """Return a call with its times as the machine's clock has them."""
        if not (ahead := self.clock.ahead):
            return call
        shown = call._replace(first_watched=call.first_watched - ahead)
        if shown.finished_at is not None:
            shown = shown._replace(finished_at=shown.finished_at - ahead)
        return shown

    def observe(
        self, account: str, call: WatchedCall, found: Finished | PollAgain, at: float
    ) -> None:
        """Have it committed, soon, what a poll found out about a call."""
        pending = self._pending.get(call.id)
        if pending is None:
            if isinstance(found, PollAgain) and found.state is call.state:
                return  # nothing new
        elif isinstance(pending.verdict, Finished):
            return  # nothing undoes a finish
        if not self._pending:
            self._observed.set()
        self._pending[call.id] = Observation(account, call, found, at)

    async def run(self) -> None:
        """Commit what is observed, in groups, until `close`."""
        failures, keep_time_at, ahead = 0, 0.0, self.clock.ahead
        while not (self._closing and not self._pending):
            with suppress(TimeoutError):
                async with asyncio.timeout(_PROVE_EVERY):
                    await self._observed.wait()
            if self._pending and not self._closing and len(self._pending) < BATCH_SIZE:
                await asyncio.sleep(_GATHER)
            if await self._flush():
                failures = 0
                self.clock.now()
                # At once where it was set: a reboot would tell nothing of that.
                if time.monotonic() >= keep_time_at or self.clock.ahead != ahead:
                    with suppress(LedgerError):  # what fails shows at the next commit
                        noticed = self.clock.ahead
                        await self.call(self.database.keep_time, self.clock)
                        ahead = noticed
                    keep_time_at = time.monotonic() + _KEEP_TIME_EVERY
            else:
                failures += 1
                await asyncio.sleep(_RETRY.wait(failures))

    def close_soon(self) -> None:
        """Have `run` end as soon as everything that was observed is committed."""
        self._closing = True
        self._observed.set()

    async def close(self, within: float | None = None) -> None:
        """Close the database; one that does not answer is waited for `within` seconds at most."""
        store, self._store = self._store, None  # at once: later calls find it closed
        if store is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(within):
                    await self._run(store.close)
        self._thread.close()
        self._reader.close()

    async def _flush(self) -> bool:
        # The oldest ones; after an outage of the ledger there may be many.
        group = dict(islice(self._pending.items(), BATCH_SIZE))
        for call_id in group:
            del self._pending[call_id]
        if not self._pending and not self._closing:
            self._observed.clear()
        # Where nothing was observed, it is still proved that the ledger is there.
        started = time.perf_counter()
        try:
            committed = await self.call(self.store.commit, list(group.values()))
        except LedgerError as error:
            # What was observed since is newer, except that nothing undoes a finish.
            for call_id, observation in group.items():
                if isinstance(observation.verdict, Finished):
                    self._pending[call_id] = observation
                else:
                    self._pending.setdefault(call_id, observation)
            self._observed.set()
            if self._problem is None:
                _log.error("ledger cannot be written", problem=str(error))
            self._problem = str(error)
            return False
        if self._problem is not None:
            _log.info("ledger can be written again")
        self._problem = None
        if group:
            self._observe_commit(time.perf_counter() - started)
            self._committed(group.values(), committed)
        return True

    async def _run(self, function: Callable[[], R]) -> R:
        self._asked.append(time.monotonic())
        done = self._thread.submit(function)
        done.add_done_callback(lambda _: self._asked.popleft())
        return await _result(done)


async def _result(done: asyncio.Future[R]) -> R:
    try:
        return await done
    except SourceError as error:
        raise LedgerError(f"ledger: {error}") from None
