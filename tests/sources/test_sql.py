from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from exporter.config import SqlConfig, WatchConfig
from exporter.sources.sql import OVERLAP, SqlSource, read_since
from tests.databases import Server
from tests.sources.queried import CONTEXT, DAY, File, config, kind, many
from tests.sources.sink import Sink
from tests.waiting import until


@pytest.mark.parametrize(
    ("last", "memory", "expected"),
    [
        # At first, what the provider knows still; and what has not been forgotten after its count.
        (None, 30 * DAY, -7 * DAY),
        (None, DAY, -DAY),
        # Then, with an overlap, from the last run on that was whole.
        (-30.0, 30 * DAY, -30 - OVERLAP),
        (-2 * DAY, 30 * DAY, -2 * DAY - OVERLAP),
        (-9 * DAY, 30 * DAY, -7 * DAY),
        # What was read is not read again once it may be forgotten; what was not, is.
        (-30.0, 300.0, -300.0),
        (-2 * DAY, DAY, -2 * DAY),
        (-30.0, 1.0, -30.0),
        # A clock that was ahead loses nothing of the time that comes again.
        (3600.0, 30 * DAY, -OVERLAP),
        (9 * DAY, 1.0, -1.0),
    ],
)
def test_from_when_on_rows_are_asked_for(
    last: float | None, memory: float, expected: float
) -> None:
    now = 1_700_000_000.0
    assert read_since(None if last is None else now + last, memory, now) == now + expected


def warnings(logs: Iterable[Mapping[str, object]]) -> list[object]:
    return [line["problem"] for line in logs if line["log_level"] == "warning"]


@asynccontextmanager
async def running(sink: Sink) -> AsyncIterator[SqlSource]:
    """Run a source of queries, as the app does."""
    source = SqlSource(sink)
    task = asyncio.create_task(source.run())
    yield source
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def configure(source: SqlSource, *queries: SqlConfig, **context: Any) -> None:
    await source.configure(
        WatchConfig(labels=("campaign",), sql=queries), CONTEXT._replace(**context)
    )


def fast(database: File | Server, query: str) -> SqlConfig:
    return config(database, query, account="main").model_copy(update={"interval": 0.05})


async def test_a_source_that_fails_goes_on(tmp_path: Path) -> None:
    file, sink = File(tmp_path / "calls.db"), Sink()
    query = fast(file, "SELECT reference_id FROM calls")
    async with running(sink) as source:
        with capture_logs() as logs:
            await configure(source, query)
            (status,) = source.statuses
            await until(lambda: status.errors > 2)
            assert str(status.problem).startswith("the database failed: ")
            file.execute("CREATE TABLE calls (reference_id TEXT)", "INSERT INTO calls VALUES ('A')")
            await until(lambda: "A" in sink.named[None])
            file.execute("INSERT INTO calls VALUES ('b a d')")
            before = status.errors
            await until(lambda: status.errors > before + 1)
            # It has read what there is, and refused what has to be.
            now = time.time()
            await until(lambda: status.last_success > now)
            # The same row as another one: nothing new.
            file.execute("DELETE FROM calls WHERE reference_id = 'A'")
            before = status.errors
            await until(lambda: status.errors > before + 1)
            file.execute("DELETE FROM calls", "INSERT INTO calls VALUES ('A')")
            await until(lambda: logs[-1]["event"] == "source recovered")
            assert not status.problem
            sink.broken = True
            before = status.errors
            await until(lambda: status.errors > before + 1)
            sink.broken, sink.room = False, 0
            sink.named.clear()
            full = "some of its calls exceed `watch.max_calls` (account main)"
            await until(lambda: warnings(logs)[-1] == full)
        # Each of them is logged once, however often it is tried.
        assert [str(problem)[:30] for problem in warnings(logs)] == [
            "the database failed: unable to",
            "sql:orders:2: [1].reference_id",
            "the disk is full",
            "some of its calls exceed `watc",
        ]
        # A query that goes on under its name keeps its numbers; one that is gone is not shown.
        await configure(source, query, labels=())
        assert source.statuses == [status]
        assert status.errors > before
        await configure(source)
        assert source.statuses == []


async def test_a_query_that_has_not_changed_goes_on(tmp_path: Path) -> None:
    file, sink = File(tmp_path / "calls.db"), Sink()
    file.execute("CREATE TABLE calls (id INTEGER)")
    query = config(file, "SELECT 'A' AS reference_id", account="main", interval=86400.0)
    async with running(sink) as source:
        for others, runs in ((CONTEXT.accounts, 1), (CONTEXT.accounts, 1), (("main",), 2)):
            await configure(source, query, accounts=others)
            await until(lambda: sink.added == runs)  # noqa: B023 - awaited here


async def test_since_goes_on_with_what_was_read(tmp_path: Path) -> None:
    file, sink = File(tmp_path / "calls.db"), Sink()
    # Rows that are refused, or have no id yet, do not keep it from going on.
    file.execute("CREATE TABLE calls (id TEXT)", "INSERT INTO calls VALUES ('b a d'), (NULL)")
    select = "SELECT replace(:since, ' ', 'T') AS reference_id UNION ALL SELECT id FROM calls"
    async with running(sink) as source:
        now = time.time()
        await configure(source, fast(file, select))
        (status,) = source.statuses
        # The clock of SQLite has full seconds.
        await until(lambda: len({*sink.offered}) > 2)
        moments = [datetime.fromisoformat(f"{found}Z").timestamp() for found in sink.offered]
        assert moments[0] == pytest.approx(now - 7 * DAY, abs=60)
        assert moments[1] == pytest.approx(now - OVERLAP, abs=60)
        assert moments == sorted(moments)
        # Calls that could not be added have to be read again.
        for broken in (True, False):
            sink.broken, sink.room = broken, 0
            before, end = status.errors, time.monotonic() + 1.1
            await until(lambda: status.errors > before + 1 and time.monotonic() > end)  # noqa: B023 - awaited here
            assert sink.offered[-1] == sink.offered[-2]


async def test_since_goes_on_after_a_restart(database: File | Server) -> None:
    """By the clock of the database, whatever this machine's says."""
    moment = {
        "sqlite": "strftime('%s', :since)",
        "postgresql": "floor(extract(epoch FROM CAST(:since AS timestamptz)))::bigint",
        "mariadb": "floor(unix_timestamp(:since))",
    }[kind(database)]
    sink, select = Sink(), f"SELECT {moment} AS reference_id"
    if isinstance(database, File):
        database.execute("CREATE TABLE IF NOT EXISTS calls (id INTEGER)")

    async def first_of_a_life(select: str, **context: object) -> float:
        sink.offered.clear()
        async with running(sink) as source:
            await configure(source, fast(database, select), **context)
            await until(lambda: len(sink.offered) > 1)  # once it is remembered, it goes on
        return float(sink.offered[0])

    now = time.time()
    assert await first_of_a_life(select) == pytest.approx(now - 7 * DAY, abs=60)
    digest, _ = sink.cursors["sql:orders"]
    sink.cursors["sql:orders"] = digest, now - 3 * DAY
    assert await first_of_a_life(select) == pytest.approx(now - 3 * DAY - OVERLAP, abs=2)
    # It is that of the question: another one begins anew.
    for other in (select + " WHERE 1 = 1", select):
        assert await first_of_a_life(other) == pytest.approx(now - 7 * DAY, abs=60)
    others = (*CONTEXT.accounts, "new")
    again = await first_of_a_life(select, accounts=others)
    assert again == pytest.approx(now - 7 * DAY, abs=60)
    # And by the clock of the database, which is the one that stands in its rows.
    sink.cursors["sql:orders"] = sink.cursors["sql:orders"][0], now + DAY
    again = await first_of_a_life(select, accounts=others)
    assert again == pytest.approx(time.time() - OVERLAP, abs=60)


async def test_the_loop_goes_on_when_a_run_is_ended(database: File | Server) -> None:
    if isinstance(database, File):
        database.execute("CREATE TABLE IF NOT EXISTS calls (id INTEGER)")
    sink, threads = Sink(), set(threading.enumerate())
    async with running(sink) as source:
        await configure(source, many(database))
        await until(lambda: len(sink.offered) > 3000)
    # Its thread, which may have to wait for the database, is not waited for.
    await until(lambda: set(threading.enumerate()) <= threads)
