from __future__ import annotations

import gc
from collections import deque
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pymysql._auth import sha2_rsa_encrypt  # type: ignore[import-untyped]
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from exporter.config import SqlConfig
from exporter.config.document import Problems
from exporter.errors import SourceError
from exporter.secrets import Secret
from exporter.sources.source import SourceContext
from exporter.sources.sql import Query
from tests.databases import PASSWORD, Server
from tests.sources.queried import CONTEXT, File, config, kind, many


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


def read(
    found: SqlConfig, since: float = 0.0, context: SourceContext = CONTEXT
) -> tuple[list[tuple[str, str, dict[str, str]]], list[str]]:
    problems = Problems("sql:orders")
    calls = [
        (call.account, str(call.reference_id), dict(call.labels))
        for batch in Query(found, context).batches(lambda _: since, problems)
        for call in batch
    ]
    return calls, [str(problem) for problem in problems.listed()]


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


@pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
def test_nul_bytes(table: File | Server) -> None:
    nul = "char(0)"
    insert(table, (1, "A", "main", "otp", None))
    for column in ("reference_id", "account", "campaign"):
        others = {"reference_id", "account", "campaign"} - {column}
        query = f"SELECT {', '.join(others)}, concat('a', {nul}, 'b') AS {column} FROM calls"
        if isinstance(table, File):
            query = query.replace(f"concat('a', {nul}, 'b')", f"'a' || {nul} || 'b'")
        calls, problems = read(config(table, query))
        assert (calls, len(problems)) == ([], 1)
        assert f"{column}: expected" in problems[0]


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
    batches = list(Query(config(table), CONTEXT).batches(lambda now: now, Problems("")))
    assert [len(batch) for batch in batches] == [1000] * 5


def test_what_is_left_of_rows_is_not_waited_for(database: File | Server) -> None:
    if isinstance(database, File):
        database.execute("CREATE TABLE IF NOT EXISTS calls (id INTEGER)")
    batches = Query(many(database), CONTEXT).batches(lambda now: now, Problems(""))
    next(batches)
    batches.close()
    with pytest.raises(SourceError, match="expected a column"):
        next(Query(many(database, "id"), CONTEXT).batches(lambda now: now, Problems("")))


OTHERS = {
    "postgresql": "SELECT pid FROM pg_stat_activity"
    " WHERE usename = 'postgres' AND pid <> pg_backend_pid()",
    "mariadb": "SELECT id FROM information_schema.processlist WHERE id <> connection_id()",
}
END = {"postgresql": "SELECT pg_terminate_backend({})", "mariadb": "KILL {}"}


def break_connections(database: Server) -> None:
    """End the connections of others."""
    with create_engine(database.url, poolclass=NullPool).connect() as connection:
        for number in connection.scalars(text(OTHERS[kind(database)])).all():
            connection.execute(text(END[kind(database)].format(number)))


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_a_connection_that_breaks(database: Server, caplog: pytest.LogCaptureFixture) -> None:
    batches = Query(many(database), CONTEXT).batches(lambda now: now, Problems(""))
    next(batches)
    break_connections(database)
    with pytest.raises(SourceError, match="the database failed"):
        deque(batches, maxlen=0)
    # A driver or SQLAlchemy may have logged what it could not close.
    assert not caplog.records


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_a_connection_that_breaks_before_the_query(database: Server) -> None:
    def since(_now: float) -> float:
        break_connections(database)
        return 0.0

    query = Query(config(database, "SELECT 'a' AS reference_id WHERE :since < now()"), CONTEXT)
    with pytest.raises(SourceError, match="the database failed"):
        list(query.batches(since, Problems("")))
    gc.collect()  # a cursor that is still open would warn


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
        ("SELECT reference_id, reference_id FROM calls", "no duplicate columns"),
        ("SELECT reference_id, placed_at FROM calls", "expected only the columns"),
        ("SELECT reference_id FROM nowhere", "the database failed: .*nowhere"),
        ("SELEKT", "the database failed: .*(syntax|SELEKT)"),
    ],
)
def test_a_query_that_cannot_be_used(table: File | Server, query: str, expected: str) -> None:
    with pytest.raises(SourceError, match=f"(?i){expected}") as error:
        read(config(table, query))
    url = make_url(table.url)
    for part in (PASSWORD, "postgres", "'app", url.host, str(url.port), url.database):
        assert not part or part not in str(error.value)


def test_a_query_that_takes_too_long(table: File | Server) -> None:
    slow = {
        "postgresql": "SELECT pg_sleep(1000)::text AS reference_id",
        "mariadb": "SELECT SLEEP(1000) AS reference_id",
        "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
        " SELECT max(i) AS reference_id FROM n",
    }[kind(table)]
    with pytest.raises(SourceError):
        read(config(table, slow, timeout=1.0))


def test_nothing_of_an_address_shows(database: File | Server) -> None:
    refused = "the database failed: it cannot be reached, or refuses the user"
    elsewhere = "the database failed: unable to open database file (OperationalError)"
    parts: list[dict[str, Any]] = [
        {"password": "other"},
        {"username": "nobody"},
        {"database": "nowhere"},
        {"port": 1},
    ]
    expected = {
        "postgresql": [f"{refused} (OperationalError)"] * 4,
        "mariadb": [f"{refused} (OperationalError {n})" for n in (1045, 1045, 1044, 2003)],
        "sqlite": [elsewhere],
    }[kind(database)]
    if isinstance(database, File):
        parts = [{"database": "/nowhere/secret-name.db"}]
    for wrong, message in zip(parts, expected, strict=True):
        url = make_url(database.url).set(**wrong).render_as_string(hide_password=False)
        with pytest.raises(SourceError) as error:
            read(config(database, url=Secret(url)))
        assert str(error.value) == message


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_who_may_not_read_is_not_named(database: Server) -> None:
    with pytest.raises(SourceError, match="SELECT command denied to user '\\*\\*\\*' for table"):
        read(config(database, "SELECT user AS reference_id FROM mysql.global_priv"))


def test_whatever_else_fails(tmp_path: Path) -> None:
    file = File(tmp_path / "x.db")
    file.execute("CREATE TABLE calls (reference_id TEXT)")
    with pytest.raises(SourceError, match=r"^the driver failed \(\w+Error\)$"):
        read(config(file, "SELECT :since AS reference_id"), since=1e30)


def test_the_driver_of_mysql_can_encrypt_passwords() -> None:
    """MySQL 8 asks its default users for that, and the driver leaves it to another package."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    assert sha2_rsa_encrypt(b"made-up password", b"s" * 20, key.public_bytes(*form))
