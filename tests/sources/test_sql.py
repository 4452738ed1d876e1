from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool
from structlog.testing import capture_logs

from exporter.config import SqlConfig
from exporter.config.databases import database_problem
from exporter.config.problems import Problems
from exporter.errors import LedgerError, SourceError
from exporter.ledger.records import NewCall, Tally
from exporter.metrics.catalogue import Catalogue
from exporter.secret import Secret
from exporter.sources import database as module
from exporter.sources.query import Query, Rules
from exporter.sources.sql import OVERLAP, SqlSources, asked_since
from tests.databases import PASSWORD, Server, mariadb, postgresql
from tests.waiting import until

DAY = 86_400.0
RULES = Rules(["main", "b"], ["campaign"], 30 * DAY)
QUERY = "SELECT reference_id, account, campaign FROM calls ORDER BY id"


class File:
    """An SQLite file in the place of a server."""

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}"

    def execute(self, *statements: str) -> None:
        with create_engine(self.url, poolclass=NullPool).begin() as connection:
            for statement in statements:
                connection.execute(text(statement))


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "mariadb"])
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[File | Server]:
    if request.param == "sqlite":
        yield File(tmp_path_factory.mktemp("sql") / "the calls.db")
        return
    with {"postgresql": postgresql, "mariadb": mariadb}[request.param]() as server:
        yield server


@pytest.fixture
def table(database: File | Server) -> File | Server:
    moment = "TIMESTAMP" if "sqlite" not in database.url else "TEXT"
    database.execute(
        "DROP TABLE IF EXISTS calls",
        "CREATE TABLE calls (id INTEGER PRIMARY KEY, reference_id VARCHAR(200),"
        f" account VARCHAR(200), campaign VARCHAR(200), placed_at {moment} NULL)",
    )
    return database


def insert(table: File | Server, *rows: tuple[object, ...]) -> None:
    values = ("(" + ", ".join("NULL" if v is None else f"'{v}'" for v in row) + ")" for row in rows)
    table.execute(f"INSERT INTO calls VALUES {', '.join(values)}")


def kind(database: File | Server) -> str:
    return database.url.partition(":")[0].partition("+")[0]


def config(table: File | Server, query: str = QUERY, **more: object) -> SqlConfig:
    fields = {"name": "orders", "url": Secret(table.url), "query": query, "interval": 1.0, **more}
    return SqlConfig.model_validate(fields)


def read(
    found: SqlConfig, since: float = 0.0, rules: Rules = RULES
) -> tuple[list[tuple[str, str, dict[str, str]]], list[str]]:
    problems = Problems("sql:orders")
    calls = [
        (call.account, str(call.reference_id), dict(call.labels))
        for batch in Query(found, rules).batches(since, problems)
        for call in batch
    ]
    return calls, [str(problem) for problem in problems._found]


def test_rows_become_calls(table: File | Server) -> None:
    insert(
        table, (1, "A", "main", "otp", None), (2, " b ", "b", None, None), (3, "C", None, "", None)
    )
    assert read(config(table, account="main")) == (
        [("main", "A", {"campaign": "otp"}), ("b", "b", {}), ("main", "C", {})],
        [],
    )
    assert read(config(table, "SELECT reference_id FROM calls WHERE id = 1", account="b")) == (
        [("b", "A", {})],
        [],
    )
    # Numbers are ids, too.
    assert read(config(table, "SELECT id AS reference_id FROM calls", account="b"))[0][0] == (
        "b", "1", {}
    )  # fmt: skip


def test_a_bad_row_does_not_stop_the_others(table: File | Server) -> None:
    insert(
        table,
        (1, "A", "main", None, None),
        (2, "", "main", None, None),
        (3, "b a d", "main", None, None),
        (4, "B", "nobody", None, None),
        (5, "C", "main", "x" * 129, None),
        (6, "D", "main", None, None),
    )
    calls, problems = read(config(table))
    assert [call[1] for call in calls] == ["A", "D"]
    assert [problem.split(": ")[0] for problem in problems] == [
        f"sql:orders:{line}" for line in (3, 4, 5)
    ]


def test_a_call_that_has_no_id_yet_is_no_mistake(table: File | Server) -> None:
    insert(table, (1, None, "main", None, None), (2, "", "main", None, None))
    assert read(config(table)) == ([], [])
    insert(table, (3, "A", "main", None, None), (4, "B", "nobody", None, None))
    calls, problems = read(config(table))
    assert calls == [("main", "A", {})]
    assert len(problems) == 1
    assert problems[0].startswith("sql:orders:4: ")


def test_many_rows_come_in_batches(table: File | Server) -> None:
    for start in range(1, 5001, 1000):
        insert(table, *((n, f"c{n}", "main", None, None) for n in range(start, start + 1000)))
    batches = list(Query(config(table), RULES).batches(0, Problems("")))
    assert [len(batch) for batch in batches] == [1000] * 5


def many(database: File | Server, column: str = "reference_id") -> SqlConfig:
    """Return a query with more rows than anybody wants to read."""
    query = {
        "postgresql": f"SELECT 'c' || generate_series(1, 20000000) AS {column}",
        "mariadb": f"SELECT CONCAT('c', seq) AS {column} FROM seq_1_to_20000000",
        "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
        f" SELECT 'c' || i AS {column} FROM n",
    }[kind(database)]
    return config(database, query, account="main")


def test_what_is_left_of_rows_is_not_waited_for(database: File | Server) -> None:
    if isinstance(database, File):
        database.execute("CREATE TABLE IF NOT EXISTS calls (id INTEGER)")
    batches = Query(many(database), RULES).batches(0, Problems(""))
    next(batches)
    begun = time.monotonic()
    batches.close()
    with pytest.raises(SourceError, match="expected a column"):
        next(Query(many(database, "id"), RULES).batches(0, Problems("")))
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_a_connection_that_breaks(database: Server, caplog: pytest.LogCaptureFixture) -> None:
    batches = Query(many(database), RULES).batches(0, Problems(""))
    next(batches)
    others, end = {
        "postgresql": (
            "pid FROM pg_stat_activity WHERE usename = 'postgres' AND pid <> pg_backend_pid()",
            "SELECT pg_terminate_backend({})",
        ),
        "mariadb": (
            "id FROM information_schema.processlist WHERE id <> connection_id()",
            "KILL {}",
        ),
    }[kind(database)]
    with create_engine(database.url, poolclass=NullPool).connect() as connection:
        for (number,) in connection.execute(text(f"SELECT {others}")).all():
            connection.execute(text(end.format(number)))
    with pytest.raises(SourceError, match="the database failed"):
        deque(batches, maxlen=0)
    # A driver or SQLAlchemy may have logged what it could not close.
    assert not caplog.records


def test_since(table: File | Server) -> None:
    now = datetime.now(UTC)
    for number, minutes in enumerate((90, 30, 1)):
        moment = (now - timedelta(minutes=minutes)).strftime("%Y-%m-%d %H:%M:%S")
        insert(table, (number, f"c{number}", "main", None, moment))
    query = "SELECT reference_id, account FROM calls WHERE placed_at >= :since ORDER BY id"
    calls, _ = read(config(table, query), since=now.timestamp() - 3600)
    assert [call[1] for call in calls] == ["c1", "c2"]


@pytest.mark.parametrize("column", ["datetime(at, 'unixepoch')", "datetime(written)"])
def test_since_beside_times_that_sqlite_cannot_compare(tmp_path: Path, column: str) -> None:
    file, now = File(tmp_path / "calls.db"), datetime.now(UTC)
    file.execute("CREATE TABLE calls (reference_id TEXT, at INTEGER, written TEXT)")
    for minutes in (90, 30, 1):
        moment = now - timedelta(minutes=minutes)
        values = f"'c{minutes}', {int(moment.timestamp())}, '{moment:%Y-%m-%dT%H:%M:%SZ}'"
        file.execute(f"INSERT INTO calls VALUES ({values.replace(':', chr(92) + ':')})")
    query = f"SELECT reference_id FROM calls WHERE {column} >= :since"
    calls, _ = read(config(file, query, account="main"), since=now.timestamp() - 3600)
    assert [call[1] for call in calls] == ["c30", "c1"]


@pytest.mark.parametrize(
    "statement", ["INSERT INTO calls VALUES (9, 'x', 'main', NULL, NULL)", "DELETE FROM calls"]
)
def test_nothing_is_written(table: File | Server, statement: str) -> None:
    insert(table, (1, "A", "main", None, None))
    with pytest.raises(SourceError, match="the database failed"):
        read(config(table, statement))
    assert len(read(config(table))[0]) == 1


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT account FROM calls", "expected a column `reference_id`"),
        ("SELECT reference_id, reference_id FROM calls", "each name once"),
        ("SELECT reference_id, placed_at FROM calls", "expected no columns but"),
        ("SELECT reference_id FROM nowhere", "the database failed: .*nowhere"),
        ("SELEKT", "the database failed: .*(syntax|SELEKT)"),
    ],
)
def test_a_query_that_cannot_be_used(table: File | Server, query: str, expected: str) -> None:
    with pytest.raises(SourceError, match=f"(?i){expected}") as error:
        read(config(table, query))
    assert PASSWORD not in str(error.value)


def test_a_query_that_takes_too_long(table: File | Server) -> None:
    slow = {
        "postgresql": "SELECT pg_sleep(30)::text AS reference_id",
        "mariadb": "SELECT SLEEP(30) AS reference_id",
        "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
        " SELECT max(i) AS reference_id FROM n",
    }[kind(table)]
    begun = time.monotonic()
    with pytest.raises(SourceError):
        read(config(table, slow, timeout=1.0))
    assert time.monotonic() - begun < 15


REFUSED = "the database failed: it cannot be reached, or refuses the user"


@pytest.mark.parametrize(
    ("database", "wrong", "expected"),
    [
        (kind, wrong, f"{REFUSED} ({name})")
        for kind, wrong, name in [
            ("postgresql", {"password": "other"}, "OperationalError"),
            ("postgresql", {"username": "nobody"}, "OperationalError"),
            ("postgresql", {"database": "nowhere"}, "OperationalError"),
            ("postgresql", {"port": 1}, "OperationalError"),
            ("mariadb", {"password": "other"}, "OperationalError 1045"),
            ("mariadb", {"username": "nobody"}, "OperationalError 1045"),
            ("mariadb", {"database": "nowhere"}, "OperationalError 1044"),
            ("mariadb", {"port": 1}, "OperationalError 2003"),
        ]
    ]
    + [
        (
            "sqlite",
            {"database": "/nowhere/secret-name.db"},
            "the database failed: unable to open database file (OperationalError)",
        )
    ],
    indirect=["database"],
)
def test_nothing_of_an_address_shows(
    database: File | Server, wrong: dict[str, Any], expected: str
) -> None:
    url = make_url(database.url).set(**wrong).render_as_string(hide_password=False)
    with pytest.raises(SourceError) as error:
        read(config(database, url=Secret(url)))
    assert str(error.value) == expected


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_who_may_not_read_is_not_named(database: Server) -> None:
    with pytest.raises(SourceError, match="SELECT command denied to user '\\*\\*\\*' for table"):
        read(config(database, "SELECT user AS reference_id FROM mysql.global_priv"))


def test_a_driver_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, "odd")

    monkeypatch.setattr(module, "_settings", fail)
    file = File(tmp_path / "x.db")
    file.execute("CREATE TABLE calls (reference_id TEXT)")
    with pytest.raises(SourceError, match="the driver failed"):
        read(config(file))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p@127.0.0.1/db", None),
        ("mysql://u:p@127.0.0.1/db", None),
        ("sqlite:////tmp/x.db", None),
        ("oracle://u:p@127.0.0.1/db", "the driver of this database is not installed: `"),
        ("nonsense", "expected a URL such as"),
        ("nonsense://u:p@h", "expected a URL such as"),
        ("postgresql://u:p@h:port/db", "expected a URL such as"),
    ],
)
def test_addresses(url: str, expected: str | None) -> None:
    problem = database_problem(Secret(url))
    assert problem == expected or (problem and expected and problem.startswith(expected))


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
    ],
)
def test_from_when_on_rows_are_asked_for(
    last: float | None, memory: float, expected: float
) -> None:
    now = 1_700_000_000.0
    assert asked_since(None if last is None else now + last, now, memory) == now + expected


class Intake:
    """Keeps what a source hands over, in place of the ledger."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.offered: list[str] = []
        self.room = 10_000
        self.broken = False

    async def watch(self, source: str | None, calls: Iterable[NewCall]) -> Tally:
        assert source is None
        ids = [call.reference_id for call in calls]
        self.offered += ids
        if self.broken:
            raise LedgerError("the disk is full")
        self.calls += ids[: self.room]
        return Tally(len(ids), set(), len(ids[self.room :]))

    async def keep_only(self, source: str, rows: set[int]) -> None:
        raise NotImplementedError

    async def sources(self) -> list[str]:
        raise NotImplementedError


def warnings(logs: Iterable[Mapping[str, object]]) -> list[object]:
    return [line["problem"] for line in logs if line["log_level"] == "warning"]


async def test_a_source_that_fails_goes_on(tmp_path: Path) -> None:
    file, intake, metrics = File(tmp_path / "calls.db"), Intake(), Catalogue()
    sources = SqlSources(intake, metrics, asyncio.create_task)
    source = config(file, "SELECT reference_id FROM calls", account="main")
    source = source.model_copy(update={"interval": 0.05})
    errors = metrics.source_errors.labels("sql:orders")
    success = metrics.source_last_success.labels("sql:orders")
    with capture_logs() as logs:
        sources.configure([source], RULES)
        await until(lambda: errors.value > 2)
        file.execute("CREATE TABLE calls (reference_id TEXT)", "INSERT INTO calls VALUES ('A')")
        await until(lambda: "A" in intake.calls)
        file.execute("INSERT INTO calls VALUES ('b a d')")
        before = errors.value
        await until(lambda: errors.value > before + 1)
        # It has read what there is, and refused what has to be.
        now = time.time()
        await until(lambda: success.value > now)
        # The same row as another one: nothing new.
        file.execute("DELETE FROM calls WHERE reference_id = 'A'")
        before = errors.value
        await until(lambda: errors.value > before + 1)
        file.execute("DELETE FROM calls", "INSERT INTO calls VALUES ('A')")
        await until(lambda: logs[-1]["event"] == "query is good again")
        now = time.time()
        intake.broken = True
        before = errors.value
        await until(lambda: errors.value > before + 1)
        intake.broken, intake.room = False, 0
        await until(lambda: warnings(logs)[-1] == "1 of its calls are beyond `watch.max_calls`")
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
    sources.configure([], RULES)
    assert ("sql:orders",) not in metrics.source_errors._series


async def test_since_goes_on_with_what_was_read(tmp_path: Path) -> None:
    file, intake, metrics = File(tmp_path / "calls.db"), Intake(), Catalogue()
    # Rows that are refused, or have no id yet, do not keep it from going on.
    file.execute("CREATE TABLE calls (id TEXT)", "INSERT INTO calls VALUES ('b a d'), (NULL)")
    query = "SELECT replace(:since, ' ', 'T') AS reference_id UNION ALL SELECT id FROM calls"
    source = config(file, query, account="main").model_copy(update={"interval": 0.05})
    sources = SqlSources(intake, metrics, asyncio.create_task)
    now, errors = time.time(), metrics.source_errors.labels("sql:orders")
    sources.configure([source], RULES)
    await until(lambda: len(intake.calls) > 3)
    moments = [datetime.fromisoformat(f"{found}Z").timestamp() for found in intake.calls]
    assert moments[0] == pytest.approx(now - 7 * DAY, abs=5)
    assert moments[1] == pytest.approx(now - OVERLAP, abs=5)
    assert moments[1] < moments[2] < moments[3]
    # Calls that could not be taken in have to be read again.
    for change in ({"broken": True}, {"broken": False, "room": 0}):
        vars(intake).update(change)
        before = errors.value
        await until(lambda: errors.value > before + 3)  # noqa: B023 - awaited here
        assert intake.offered[-1] == intake.offered[-2]
    sources.configure([], RULES)


async def test_the_loop_goes_on_when_a_run_is_ended(database: File | Server) -> None:
    if isinstance(database, File):
        database.execute("CREATE TABLE IF NOT EXISTS calls (id INTEGER)")
    intake, gaps, threads = Intake(), [0.0], set(threading.enumerate())
    sources = SqlSources(intake, Catalogue(), asyncio.create_task)
    sources.configure([many(database)], RULES)
    await until(lambda: len(intake.calls) > 3000)
    sources.configure([], RULES)
    begun = time.monotonic()
    while sum(gaps) < 1:
        await asyncio.sleep(0.01)
        gaps.append(time.monotonic() - begun - sum(gaps))
    assert max(gaps) < 0.5
    assert set(threading.enumerate()) <= threads
