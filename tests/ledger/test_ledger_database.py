"""Databases that cannot be used, each with what the error says."""

from __future__ import annotations

import os
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.pool import NullPool

from exporter.errors import LedgerBusyError, LedgerError
from exporter.ids import reference_id
from exporter.ledger.calls import move_cursor, read_cursor
from exporter.ledger.engine import open_database
from exporter.ledger.schema import HEAD
from exporter.ledger.store import Store
from exporter.ledger.types import NewCall


def url(path: Path) -> str:
    return f"sqlite:///{path}"


def problem(path: Path, kind: type[LedgerError] = LedgerError) -> str:
    with pytest.raises(kind) as caught:
        open_database(url(path))
    assert type(caught.value) is kind
    text = str(caught.value)
    assert "\n" not in text
    return text.removeprefix(f"ledger {path}: ")


def test_a_ledger_is_for_its_owner_and_is_durable(path: Path) -> None:
    database = open_database(url(path))
    with database.begin() as connection:
        settings = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert settings == ["wal", 2, 1]
    for file in (path, path.with_name("ledger.db-wal")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    database.close()


def test_how_far_a_query_has_read_survives_a_restart(path: Path) -> None:
    for last in (None, 1.5, 2.5):
        store = Store(open_database(url(path)))
        assert store.database.run(read_cursor, "sql:orders", "digest") == last
        assert store.database.run(read_cursor, "sql:orders", "another digest") is None
        store.database.run(move_cursor, "sql:orders", "digest", (last or 0.5) + 1)
        store.database.close()


def test_one_exporter_has_it_at_a_time(path: Path, tmp_path: Path) -> None:
    database = open_database(url(path))
    link = tmp_path / "link.db"
    link.symlink_to(path)
    for name in (path, link):
        assert problem(name, LedgerBusyError).endswith(
            "is in use by another esms-exporter; stop it, or name another file in `ledger.url`"
        )
    database.close()
    open_database(url(path)).close()


@pytest.mark.parametrize("content", [b"accounts: []\n" * 200, bytes(range(256)) * 20])
def test_a_file_that_is_not_sqlite_is_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert problem(path) == (
        "is not an SQLite database; name another file in `ledger.url` (SQLITE_NOTADB)"
    )
    assert path.read_bytes() == content


def run(url: str, statements: str, **parameters: object) -> list[str]:
    """Change a database past the exporter; return its tables."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        for statement in filter(str.strip, statements.split(";\n")):
            if parameters:
                connection.execute(text(statement), parameters)
            else:
                connection.exec_driver_sql(statement)
    return inspect(engine).get_table_names()


def refused(url: str) -> str:
    with pytest.raises(LedgerError) as caught:
        open_database(url)
    return str(caught.value).partition(": ")[2]


def test_the_database_of_another_program_is_left_as_it_is(old_url: str, path: Path) -> None:
    run(old_url, "CREATE TABLE accounts (id INTEGER)")
    before = path.read_bytes() if path.exists() else None
    assert refused(old_url) == "belongs to another program; name another database in `ledger.url`"
    assert before == (path.read_bytes() if path.exists() else None)
    assert run(old_url, "SELECT id FROM accounts") == ["accounts"]


def test_a_ledger_of_a_newer_version_is_used_where_it_says_so(old_url: str) -> None:
    open_database(old_url).close()
    oldest_user = "UPDATE compatibility SET oldest_user"
    run(old_url, f"UPDATE alembic_version SET version_num = '9999';\n{oldest_user} = '9998'")
    assert refused(old_url) == (
        "was written by a newer esms-exporter (revision 9999); "
        "upgrade this exporter, or name another database in `ledger.url`"
    )
    run(old_url, f"{oldest_user} = '{HEAD}';\nALTER TABLE calls ADD COLUMN of_the_future TEXT")
    store = Store(open_database(old_url))
    store.watch(None, [NewCall("main", reference_id("A"), {})], 1.0)
    assert len(store.unfinished("main")) == 1
    store.database.close()


def test_a_damaged_ledger(path: Path) -> None:
    open_database(url(path)).close()
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes(len(whole) - 200))
    assert problem(path).startswith("is damaged; restore it from a backup")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "no/ledger.db",
            "cannot be opened (No such file or directory); make sure its folder",
        ),
        ("", "is a directory; name a file in it"),
        ("/dev/null", "is not a file; name a file in `ledger.url`"),
    ],
)
def test_what_is_not_a_file(tmp_path: Path, name: str, said: str) -> None:
    assert problem(tmp_path / name).startswith(said)


@pytest.mark.parametrize("name", ["sqlite://", "sqlite:///"])
def test_a_ledger_is_a_file(name: str) -> None:
    with pytest.raises(LedgerError, match=r"^ledger: expected a file"):
        open_database(name)


def test_another_program_that_holds_it(path: Path) -> None:
    database = open_database(url(path))
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 50")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="is locked by another program; end it"):
            database.run(Store(database).snapshot)
    assert database.run(Store(database).snapshot).label_sets == {}
    database.close()


@pytest.mark.parametrize(("file", "folder"), [(0o444, 0o555), (0o444, 0o777), (0o000, 0o777)])
def test_a_ledger_that_may_not_be_written(file: int, folder: int) -> None:
    # Not under `tmp_path`, which other users may not enter.
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "ledger.db")
        open_database(url(path)).close()
        path.chmod(file)
        path.parent.chmod(folder)
        with nobody():
            text = problem(path)
        path.parent.chmod(0o700)
    assert text.startswith("cannot be ")
    assert "writable" in text


@contextmanager
def nobody() -> Iterator[None]:
    """Be an ordinary user for a while: root may write everything."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(was)
