"""The watch source of SQL queries: `watch.sql`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from typing import Final

import structlog

from exporter.calls import PROVIDER_MEMORY
from exporter.config import SqlConfig
from exporter.config.problems import Problems
from exporter.errors import LedgerError, SourceError
from exporter.ledger.records import NewCall
from exporter.metrics.catalogue import Catalogue
from exporter.sources.files import Intake
from exporter.sources.query import Names, Query, source_name
from exporter.sources.worker import Worker

OVERLAP: Final = 600.0
"""Seconds: a row is committed some time after the moment that stands in it."""

Spawn = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]

_log = structlog.get_logger(__name__)


class SqlSources:
    """Runs the queries of a configuration, each at its interval.

    Args:
        intake: takes the calls.
        metrics: where successes and failures are counted.
        spawn: runs a coroutine in the background, until it is cancelled.
    """

    def __init__(self, intake: Intake, metrics: Catalogue, spawn: Spawn) -> None:
        self._intake = intake
        self._metrics = metrics
        self._spawn = spawn
        self._running: dict[SqlConfig, tuple[Names, asyncio.Task[None]]] = {}

    def configure(self, configs: Sequence[SqlConfig], names: Names) -> None:
        """Go over to other queries; those that have not changed go on."""
        for config, (old, task) in list(self._running.items()):
            if config not in configs or old != names:
                task.cancel()
                del self._running[config]
                if source_name(config) not in map(source_name, configs):
                    self._metrics.show_source(source_name(config), shown=False)
        for config in configs:
            if config not in self._running:
                self._metrics.show_source(source_name(config), shown=True)
                task = self._spawn(self._run(config, names))
                self._running[config] = names, task

    async def _run(self, config: SqlConfig, names: Names) -> None:
        with closing(Worker(source_name(config))) as worker:
            await self._repeat(Query(config, names), config.interval, worker)

    async def _repeat(self, query: Query, interval: float, worker: Worker) -> None:
        source = query.source
        # Further back, the provider does not know calls any more.
        since, said = time.time() - PROVIDER_MEMORY, ""
        while True:
            begun, started = time.monotonic(), time.time()
            problem = await self._once(query, worker, since)
            if problem:
                self._metrics.source_errors.labels(source).value += 1
                if problem != said:
                    _log.warning("query failed", source=source, problem=problem)
            else:
                since = started - OVERLAP
                self._metrics.source_last_success.labels(source).value = time.time()
                if said:
                    _log.info("query is good again", source=source)
            said = problem
            await asyncio.sleep(max(0.0, begun + interval - time.monotonic()))

    async def _once(self, query: Query, worker: Worker, since: float) -> str:
        """Run a query once; returns what was wrong, or nothing."""
        problems, refused = Problems(query.source), 0
        batches = query.batches(since, problems)
        try:
            while (batch := await worker.submit(lambda: next(batches, None))) is not None:
                calls = (NewCall(call.account, call.reference_id, call.labels) for call in batch)
                refused += (await self._intake.watch(None, calls)).refused
        except (SourceError, LedgerError) as error:
            return str(error)
        finally:
            # Where it was opened, however long that takes: this task may have been cancelled.
            worker.submit(batches.close)
        if refused:
            return f"{refused} of its calls are beyond `watch.max_calls`"
        return "\n".join(map(str, problems.told()))
