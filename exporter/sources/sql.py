"""The watch source of SQL queries: `watch.sql`."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from functools import partial
from typing import Final, NamedTuple, Protocol, Self

import structlog

from exporter.calls import PROVIDER_MEMORY
from exporter.config import SqlConfig
from exporter.config.problems import Problems
from exporter.errors import LedgerError, Problem, SourceError
from exporter.ledger.records import NewCall
from exporter.source_status import SourceStatuses
from exporter.sources.files import Intake
from exporter.sources.query import Query, Rules, source_name
from exporter.threads import SerialThread

OVERLAP: Final = 600.0
"""Seconds: a row is committed some time after the moment that stands in it."""

Spawn = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]

_log = structlog.get_logger(__name__)


class SqlIntake(Intake, Protocol):
    """Who takes calls in, and remembers what was read: `exporter.tracker.CallTracker`."""

    async def cursor(self, source: str, query: str) -> float | None:
        """Return up to when a query has read, if it was read before."""

    async def move_cursor(self, source: str, query: str, read_until: float) -> None:
        """Remember up to when a query has read."""


class _End(NamedTuple):
    """What came of a run.

    Attributes:
        whole: every row was read, and every call that is as it should be was taken in.
        problem: what was wrong; empty for nothing.
        kinds: the same without numbers, which are others in each run.
    """

    whole: bool
    problem: str
    kinds: frozenset[str]

    @classmethod
    def failed(cls, problem: str, kind: str) -> Self:
        return cls(whole=False, problem=problem, kinds=frozenset({kind}))

    @classmethod
    def reached(cls, refused: Sequence[Problem]) -> Self:
        kinds = {
            f"{problem.key.partition(']')[2]}: {problem.message}"
            for problem in refused
            if problem.line
        }
        return cls(whole=True, problem="\n".join(map(str, refused)), kinds=frozenset(kinds))


def asked_since(last: float | None, memory: float, now: float) -> float:
    """Return the time from which on rows are asked for.

    All times are Unix times, by the clock of the database.

    Args:
        last: when the last run that was whole began; None before the first.
        memory: how long the ledger remembers a call that has finished, in seconds. What was read
            longer ago is not read again: it would be counted again.
        now: when this run begins.
    """
    known = now - PROVIDER_MEMORY
    remembered = now - memory
    if last is None:
        return max(known, remembered)
    last = min(last, now)  # the clock was ahead then
    return max(known, last - OVERLAP, min(last, remembered))


class SqlSources:
    """Runs the queries of a configuration, each at its interval.

    Args:
        intake: takes the calls.
        statuses: the state of each source.
        spawn: runs a coroutine in the background, until it is cancelled.
    """

    def __init__(self, intake: SqlIntake, statuses: SourceStatuses, spawn: Spawn) -> None:
        self._intake = intake
        self._statuses = statuses
        self._spawn = spawn
        self._running: dict[SqlConfig, tuple[Rules, asyncio.Task[None]]] = {}

    def configure(self, configs: Sequence[SqlConfig], rules: Rules) -> None:
        """Go over to other queries; those that have not changed go on."""
        for config, (old, task) in list(self._running.items()):
            if config not in configs or old != rules:
                task.cancel()
                del self._running[config]
                if source_name(config) not in map(source_name, configs):
                    self._statuses.configure(source_name(config), used=False)
        for config in configs:
            if config not in self._running:
                self._statuses.configure(source_name(config), used=True)
                task = self._spawn(self._run(config, rules))
                self._running[config] = rules, task

    async def _run(self, config: SqlConfig, rules: Rules) -> None:
        with closing(SerialThread(source_name(config))) as worker:
            await self._repeat(Query(config, rules), worker, config.interval, rules.memory)

    async def _repeat(
        self, query: Query, worker: SerialThread, interval: float, memory: float
    ) -> None:
        last, said = await self._resume(query, interval), frozenset[str]()
        while True:
            begun = time.monotonic()
            end = await self._once(query, worker, partial(asked_since, last, memory))
            if end.whole:
                last = query.asked_at
                self._statuses[query.source].succeeded()
            self._statuses[query.source].problem = end.problem
            if end.problem:
                self._statuses[query.source].errors += 1
                if not end.kinds <= said:
                    event = "rows refused" if end.whole else "query failed"
                    _log.warning(event, source=query.source, problem=end.problem)
            elif said:
                _log.info("query is good again", source=query.source)
            said = end.kinds
            await asyncio.sleep(max(0.0, begun + interval - time.monotonic()))

    async def _resume(self, query: Query, interval: float) -> float | None:
        while True:
            try:
                return await self._intake.cursor(query.source, query.digest)
            except LedgerError:  # counted, and told, where it happened
                await asyncio.sleep(interval)

    async def _once(
        self, query: Query, worker: SerialThread, since: Callable[[float], float]
    ) -> _End:
        problems, refused = Problems(query.source), Counter[str]()
        batches = query.batches(since, problems)
        try:
            while (batch := await worker.submit(lambda: next(batches, None))) is not None:
                calls = (NewCall(call.account, call.reference_id, call.labels) for call in batch)
                refused += (await self._intake.watch(None, calls)).refused
            if query.asked_at is not None and not refused:
                await self._intake.move_cursor(query.source, query.digest, query.asked_at)
        except (SourceError, LedgerError) as error:
            return _End.failed(str(error), str(error))
        finally:
            # Where it was opened, however long that takes: this task may have been cancelled.
            worker.submit(batches.close)
        if refused:
            names = ", ".join(sorted(refused))
            full = f"of its calls are beyond `watch.max_calls` (account {names})"
            return _End.failed(f"{refused.total()} {full}", full)
        return _End.reached(problems.told())
