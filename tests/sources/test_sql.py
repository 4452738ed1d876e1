from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from exporter.errors import LedgerError
from exporter.ledger.records import NewCall, Tally
from exporter.source_status import SourceStatuses
from exporter.sources.query import Rules
from exporter.sources.sql import OVERLAP, SqlSources, asked_since
from tests.databases import Server
from tests.sources.queried import DAY, RULES, File, config, kind, many
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
    assert asked_since(None if last is None else now + last, memory, now) == now + expected


class Intake:
    """Keeps what a source hands over, in place of the ledger."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.offered: list[str] = []
        self.room = 10_000
        self.broken = False
        self.cursors: dict[str, tuple[str, float]] = {}

    async def cursor(self, source: str, query: str) -> float | None:
        known, read_until = self.cursors.get(source, ("", 0.0))
        return read_until if known == query else None

    async def move_cursor(self, source: str, query: str, read_until: float) -> None:
        self.cursors[source] = query, read_until

    async def watch(self, source: str | None, calls: Iterable[NewCall]) -> Tally:
        assert source is None
        ids = [call.reference_id for call in calls]
        self.offered += ids
        if self.broken:
            raise LedgerError("the disk is full")
        self.calls += ids[: self.room]
        return Tally(len(ids), set(), Counter(main=len(ids)) - Counter(main=self.room))

    async def keep_only(self, source: str, rows: set[int]) -> None:
        raise NotImplementedError

    async def sources(self) -> list[str]:
        raise NotImplementedError


def warnings(logs: Iterable[Mapping[str, object]]) -> list[object]:
    return [line["problem"] for line in logs if line["log_level"] == "warning"]


async def test_a_source_that_fails_goes_on(tmp_path: Path) -> None:
    file, intake, statuses = File(tmp_path / "calls.db"), Intake(), SourceStatuses()
    sources = SqlSources(intake, statuses, asyncio.create_task)
    source = config(file, "SELECT reference_id FROM calls", account="main")
    source = source.model_copy(update={"interval": 0.05})
    status = statuses["sql:orders"]
    with capture_logs() as logs:
        sources.configure([source], RULES)
        await until(lambda: status.errors > 2)
        assert status.problem.startswith("the database failed: ")
        file.execute("CREATE TABLE calls (reference_id TEXT)", "INSERT INTO calls VALUES ('A')")
        await until(lambda: "A" in intake.calls)
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
        await until(lambda: logs[-1]["event"] == "query is good again")
        assert status.problem == ""
        now = time.time()
        intake.broken = True
        before = status.errors
        await until(lambda: status.errors > before + 1)
        intake.broken, intake.room = False, 0
        await until(
            lambda: (
                warnings(logs)[-1] == "1 of its calls are beyond `watch.max_calls` (account main)"
            )
        )
    # Each of them is said once, however often it is tried.
    assert [str(problem)[:30] for problem in warnings(logs)] == [
        "the database failed: unable to",
        "sql:orders:2: [1].reference_id",
        "the disk is full",
        "1 of its calls are beyond `wat",
    ]
    # What has not changed goes on; what is gone takes its series along.
    sources.configure([source], RULES)
    (task,) = [task for _, task in sources._running.values()]
    sources.configure([source], Rules(["main"], [], DAY))
    await asyncio.sleep(0)
    assert task.cancelled() or task.cancelling()
    assert status.problem
    sources.configure([], RULES)
    assert not statuses.items()


async def test_since_goes_on_with_what_was_read(tmp_path: Path) -> None:
    file, intake, statuses = File(tmp_path / "calls.db"), Intake(), SourceStatuses()
    # Rows that are refused, or have no id yet, do not keep it from going on.
    file.execute("CREATE TABLE calls (id TEXT)", "INSERT INTO calls VALUES ('b a d'), (NULL)")
    query = "SELECT replace(:since, ' ', 'T') AS reference_id UNION ALL SELECT id FROM calls"
    source = config(file, query, account="main").model_copy(update={"interval": 0.05})
    sources = SqlSources(intake, statuses, asyncio.create_task)
    now, status = time.time(), statuses["sql:orders"]
    sources.configure([source], RULES)
    await until(lambda: len(intake.calls) > 3)
    moments = [datetime.fromisoformat(f"{found}Z").timestamp() for found in intake.calls]
    assert moments[0] == pytest.approx(now - 7 * DAY, abs=5)
    assert moments[1] == pytest.approx(now - OVERLAP, abs=5)
    assert moments[1] < moments[2] < moments[3]
    # Calls that could not be taken in have to be read again.
    for change in ({"broken": True}, {"broken": False, "room": 0}):
        vars(intake).update(change)
        before = status.errors
        await until(lambda: status.errors > before + 3)  # noqa: B023 - awaited here
        assert intake.offered[-1] == intake.offered[-2]
    sources.configure([], RULES)


async def test_since_goes_on_after_a_restart(database: File | Server) -> None:
    """By the clock of the database, whatever this machine's says."""
    moment = {
        "sqlite": "strftime('%s', :since)",
        "postgresql": "floor(extract(epoch FROM CAST(:since AS timestamptz)))::bigint",
        "mariadb": "floor(unix_timestamp(:since))",
    }[kind(database)]
    intake, query = Intake(), f"SELECT {moment} AS reference_id"
    if isinstance(database, File):
        database.execute("CREATE TABLE IF NOT EXISTS calls (id INTEGER)")

    async def first_of_a_life(query: str, rules: Rules = RULES) -> float:
        intake.calls.clear()
        sources = SqlSources(intake, SourceStatuses(), asyncio.create_task)
        source = config(database, query, account="main").model_copy(update={"interval": 0.05})
        sources.configure([source], rules)
        await until(lambda: len(intake.calls) > 1)  # once it is remembered, it goes on
        sources.configure([], rules)
        return float(intake.calls[0])

    now = time.time()
    assert await first_of_a_life(query) == pytest.approx(now - 7 * DAY, abs=60)
    digest, _ = intake.cursors["sql:orders"]
    intake.cursors["sql:orders"] = digest, now - 3 * DAY
    assert await first_of_a_life(query) == pytest.approx(now - 3 * DAY - OVERLAP, abs=2)
    # It is that of the question: another one begins anew.
    for other in (query + " WHERE 1 = 1", query):
        assert await first_of_a_life(other) == pytest.approx(now - 7 * DAY, abs=60)
    rules = RULES._replace(accounts=[*RULES.accounts, "new"])
    assert await first_of_a_life(query, rules) == pytest.approx(now - 7 * DAY, abs=60)
    # And by the clock of the database, which is the one that stands in its rows.
    intake.cursors["sql:orders"] = intake.cursors["sql:orders"][0], now + DAY
    again = await first_of_a_life(query, rules)
    assert again == pytest.approx(time.time() - OVERLAP, abs=60)


async def test_the_loop_goes_on_when_a_run_is_ended(database: File | Server) -> None:
    if isinstance(database, File):
        database.execute("CREATE TABLE IF NOT EXISTS calls (id INTEGER)")
    intake, gaps, threads = Intake(), [0.0], set(threading.enumerate())
    sources = SqlSources(intake, SourceStatuses(), asyncio.create_task)
    sources.configure([many(database)], RULES)
    await until(lambda: len(intake.calls) > 3000)
    sources.configure([], RULES)
    begun = time.monotonic()
    while sum(gaps) < 1:
        await asyncio.sleep(0.01)
        gaps.append(time.monotonic() - begun - sum(gaps))
    assert max(gaps) < 2
    assert set(threading.enumerate()) <= threads
