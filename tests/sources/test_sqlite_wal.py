"""Files of SQLite in WAL mode, in a folder that the exporter may not write."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from exporter.config.document import Problems
from exporter.errors import SourceError
from exporter.sources.sql import Query
from tests.sources.queried import CONTEXT, File, config

USER = os.geteuid()
QUERY = "SELECT reference_id FROM calls ORDER BY reference_id"


@pytest.fixture
def path() -> Iterator[Path]:
    """A database of another program, which has closed it."""
    # Not under `tmp_path`, which other users may not enter.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "calls.db")
        with closing(opened(path)) as writer:
            writer.execute("PRAGMA journal_mode = WAL")
            writer.execute("CREATE TABLE calls (reference_id TEXT)")
            writer.execute("INSERT INTO calls VALUES ('A')")
        yield path
        path.parent.chmod(0o700)


def opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


@contextmanager
def reading_only(path: Path) -> Iterator[None]:
    """Be an ordinary user who may read the folder: root may write everything."""
    path.parent.chmod(0o555)
    if USER == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(USER)


def read(path: Path) -> list[str]:
    return ids(query(path))


def query(path: Path) -> Query:
    return Query(config(File(path), QUERY, account="main"), CONTEXT)


def ids(query: Query) -> list[str]:
    batches = query.batches(lambda now: now, Problems(""))
    return [call.reference_id for batch in batches for call in batch]


def test_a_file_that_nobody_has_open_is_read_as_it_is(path: Path) -> None:
    with reading_only(path):
        assert read(path) == ["A"]
        assert os.listdir(path.parent) == [path.name]  # noqa: PTH208


def test_what_another_program_has_written_is_read(path: Path) -> None:
    with closing(opened(path)) as writer:
        writer.execute("INSERT INTO calls VALUES ('B')")
        with reading_only(path):
            assert read(path) == ["A", "B"]


@pytest.mark.parametrize("live", [True, False])
def test_what_is_needed_is_told_where_a_part_cannot_be_read(path: Path, *, live: bool) -> None:
    log, kept = path.with_name("calls.db-wal"), path.with_name("kept")
    with closing(opened(path)) as writer:
        writer.execute("INSERT INTO calls VALUES ('B')")
        if live:
            log.chmod(0)
            path.with_name("calls.db-shm").chmod(0)
        else:
            # As after a crash: the other program has not merged it.
            shutil.copy(log, kept)
            writer.close()
            kept.rename(log)
        with reading_only(path), pytest.raises(SourceError, match="is in WAL mode"):
            read(path)


def test_a_file_that_changes_meanwhile_is_read_again(path: Path) -> None:
    found = query(path)
    with reading_only(path):
        batches = found.batches(lambda now: now, Problems(""))
        assert [call.reference_id for call in next(batches)] == ["A"]
    path.parent.chmod(0o700)
    with closing(opened(path)) as writer:
        writer.execute("INSERT INTO calls VALUES ('B')")
    with reading_only(path), pytest.raises(SourceError, match="changed while it was read"):
        next(batches)
    with reading_only(path):
        assert ids(found) == ["A", "B"]


def test_a_transaction_that_was_cut_off_is_not_read_over(path: Path) -> None:
    """Outside of WAL mode, a journal may say that the file holds half of a transaction."""
    with closing(opened(path)) as writer:
        writer.execute("PRAGMA journal_mode = DELETE")
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("BEGIN")
        writer.execute("UPDATE calls SET reference_id = 'B'")
        writer.execute("CREATE TABLE more AS SELECT randomblob(100000)")
        for ending in ("", "-journal"):
            shutil.copy(f"{path}{ending}", path.with_name(f"cut.db{ending}"))
    with reading_only(path), pytest.raises(SourceError, match="the database failed"):
        read(path.with_name("cut.db"))
