"""The source `sql:NAME`: queries on databases of users, whose rows are calls."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Final

from pydantic_core import to_json
from sqlalchemy import DateTime, TextClause, bindparam, text

from exporter.calls import PROVIDER_MEMORY
from exporter.config import CallConfig, SqlConfig, WatchConfig
from exporter.config.databases import database_url
from exporter.config.document import Problems, YamlMapping
from exporter.config.watch import CallReader
from exporter.errors import LedgerError, SourceError
from exporter.ledger.types import BATCH_SIZE, NewCall
from exporter.source_status import SourceStatus
from exporter.sources.database import Database
from exporter.sources.source import CallSink, Source, SourceContext
from exporter.sources.tabular import header_problem, row_to_item
from exporter.threads import SerialThread

OVERLAP: Final = 600.0
"""Seconds: a row is committed some time after the moment that stands in it."""


def read_since(last: float | None, memory: float, now: float) -> float:
    """Return the time from which on rows are read.

    All times are Unix times, by the clock of the database.

    Args:
        last: when the last complete run began; None before the first.
        memory: how long the ledger remembers a finished call, in seconds. What was read longer ago
            is not read again: it would be counted again.
        now: when this run begins.
    """
    known = now - PROVIDER_MEMORY
    remembered = now - memory
    if last is None:
        return max(known, remembered)
    last = min(last, now)  # the clock was ahead then
    return max(known, last - OVERLAP, min(last, remembered))


class Query:
    """One query on one database. Each run connects anew.

    Args:
        config: the query and the database.
        context: what rows may name.

    Attributes:
        source: its name in metrics.
        digest: the same for the same query on the same database, whatever its password.
        started_at: when it was last run, by the database's clock (Unix time); None for a query
            without `:since`.
    """

    def __init__(self, config: SqlConfig, context: SourceContext) -> None:
        self.source = _source_name(config)
        self.started_at: float | None = None
        self._config = config
        self._accounts, self._labels = context.accounts, context.labels
        self._database = Database(config.url, config.timeout)
        url = database_url(config.url).set(password=None).render_as_string()
        rows = sorted(self._accounts), sorted(self._labels)
        self.digest = hashlib.sha256(
            to_json([config.query, config.account, url, *rows])
        ).hexdigest()

    def batches(
        self, since: Callable[[float], float], problems: Problems
    ) -> Generator[tuple[CallConfig, ...], None, None]:
        """Run the query; yield its calls in batches. Blocking.

        Args:
            since: makes `:since` of the time by the database's clock (Unix times).
            problems: takes what is wrong with rows; the others are yielded.

        Raises:
            SourceError: the database failed; the message holds nothing of its address.
        """
        reader = CallReader(self._accounts, self._labels, problems, (), repeats=True)
        with self._database.ask(lambda clock: self._statement(since, clock)) as found:
            header = list(found.keys())
            if problem := header_problem(header, self._labels):
                raise SourceError(problem)
            lines = count(1)
            for rows in found.partitions(BATCH_SIZE):
                items = [self._item(header, row, next(lines)) for row in rows]
                # A call that is just being placed has no id yet: no mistake, and read again soon.
                items = [item for item in items if "reference_id" in item]
                yield tuple(reader.read((item.line_of("reference_id"), item) for item in items))

    def _statement(self, since: Callable[[float], float], clock: Callable[[], float]) -> TextClause:
        query = text(self._config.query)
        if "since" not in query.compile().params:
            return query
        # Before the query: what it does not see yet was written after that.
        self.started_at = clock()
        # Without a zone, because columns mostly are; the session's is UTC.
        moment = datetime.fromtimestamp(since(self.started_at), UTC).replace(tzinfo=None)
        return query.bindparams(bindparam("since", moment, type_=DateTime()))

    def _item(self, header: Sequence[str], row: Sequence[object], line: int) -> YamlMapping:
        item = row_to_item(header, [_field(value) for value in row], line)
        if self._config.account is not None and "account" not in item:
            item["account"] = self._config.account
            item.lines.append(line)
        return item


class SqlSource(Source):
    """Runs the queries of a configuration, each at its interval."""

    name = "sql"

    def __init__(self, sink: CallSink) -> None:
        super().__init__(sink)
        self._queries: dict[SqlConfig, SourceContext] = {}
        self._by_name: dict[str, SourceStatus] = {}
        self._changed = asyncio.Event()

    @property
    def statuses(self) -> Sequence[SourceStatus]:
        """The status of each query."""
        return [*self._by_name.values()]

    async def configure(self, watch: WatchConfig, context: SourceContext) -> None:
        """Apply other queries; those that have not changed go on."""
        self._queries = dict.fromkeys(watch.sql, context)
        names = [_source_name(config) for config in watch.sql]
        self._by_name = {name: self._by_name.get(name) or _new_status(name) for name in names}
        self._changed.set()

    async def run(self) -> None:
        """Run the queries, until cancelled."""
        running: dict[SqlConfig, tuple[SourceContext, asyncio.Task[None]]] = {}
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._changed.wait()
                self._changed.clear()
                for config, (context, task) in list(running.items()):
                    if self._queries.get(config) != context:
                        task.cancel()
                        del running[config]
                for config in self._queries.keys() - running.keys():
                    context, status = self._queries[config], self._by_name[_source_name(config)]
                    task = tasks.create_task(self._repeat(config, context, status))
                    running[config] = context, task

    async def _repeat(
        self, config: SqlConfig, context: SourceContext, status: SourceStatus
    ) -> None:
        with closing(SerialThread(status.name)) as thread:
            query = Query(config, context)
            last = await self._cursor(query, config.interval)
            while True:
                started = time.monotonic()
                since = partial(read_since, last, context.memory)
                if await self._run_once(query, thread, since, status):
                    last = query.started_at
                    status.succeed()
                await asyncio.sleep(max(0.0, started + config.interval - time.monotonic()))

    async def _cursor(self, query: Query, interval: float) -> float | None:
        while True:
            try:
                return await self._sink.cursor(query.source, query.digest)
            except LedgerError:  # counted and logged where it happened
                await asyncio.sleep(interval)

    async def _run_once(
        self,
        query: Query,
        thread: SerialThread,
        since: Callable[[float], float],
        status: SourceStatus,
    ) -> bool:
        """Run a query; return whether every row was read, and every good call was added."""
        problems, refused = Problems(query.source), Counter[str]()
        batches = query.batches(since, problems)
        failure = kind = ""
        try:
            while (batch := await thread.submit(lambda: next(batches, None))) is not None:
                calls = (NewCall(call.account, call.reference_id, call.labels) for call in batch)
                refused += (await self._sink.add(None, calls)).refused
            if query.started_at is not None and not refused:
                await self._sink.move_cursor(query.source, query.digest, query.started_at)
        except (SourceError, LedgerError) as error:
            failure = kind = str(error)
        finally:
            # In the thread that opened it, however long that takes: this task may be cancelled.
            thread.submit(batches.close)
        if refused and not failure:
            kind = (
                f"of its calls are beyond `watch.max_calls` (account {', '.join(sorted(refused))})"
            )
            failure = f"{refused.total()} {kind}"
        # Rows are numbered differently in each run: a problem is compared without its number.
        bad_rows = problems.listed()
        kinds = {f"{row.key.partition(']')[2]}: {row.message}" for row in bad_rows if row.line}
        problem = failure or "\n".join(map(str, bad_rows))
        if problem:
            status.count_error()
        status.report("", problem or None, {kind} if failure else kinds)
        return not failure


def _source_name(config: SqlConfig) -> str:
    return f"sql:{config.name}"


def _new_status(name: str) -> SourceStatus:
    status = SourceStatus(name)
    status.configure(shown=True)
    return status


def _field(value: object) -> str:
    """Return a field as text: numbers and UUIDs too; bytes become what no id can be."""
    if value is None:
        return ""
    return "\0" if isinstance(value, bytes | bytearray | memoryview) else str(value)
