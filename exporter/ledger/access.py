"""Ledgers opened and copied by commands, whether an exporter runs on them or not."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from exporter.errors import LedgerBusyError, LedgerError
from exporter.ledger.engine import Database, open_database
from exporter.ledger.migrate import revision
from exporter.ledger.schema import HEAD
from exporter.ledger.sqlite import SqliteFile, new_mark


class _Unlocked(SqliteFile):
    """A ledger that an exporter may have open: SQLite makes transactions wait for each other.

    The lock that keeps a second exporter away is not taken, so that an exporter may start
    meanwhile; what it protects, the calls that are polled, is not touched.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.engine = self._make_engine(url)
        with self.begin() as connection:
            found = revision(connection)
            closed = connection.exec_driver_sql("PRAGMA user_version").scalar_one() % 2 == 1
        if found != HEAD:
            self.close()
            raise self.failed(
                "is in use by an exporter of another version; use the command of that one"
            )
        if closed:
            self._mark(0)  # no exporter has it open, and this may be killed


class _BackupSource(SqliteFile):
    """A ledger that is only read, whether an exporter has it open or not."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        os.close(self._open_file(os.O_RDONLY | os.O_NONBLOCK))
        # SQLite makes a -wal where there is none, and removes it only where it may write. An
        # existing one stays as it is: an exporter that was killed has to find it.
        if not self.path.with_name(self.path.name + "-wal").exists():
            self._read_mode = "rw"
        self.engine = self._reader

    def copy(self, target: Path) -> int:
        """Write what is committed now to a new file; returns how many calls that holds."""
        with (
            self.translated(),
            closing(sqlite3.connect(target)) as copy,
            self.engine.begin() as connection,
        ):
            if revision(connection) is None:
                raise self.failed("holds no ledger")
            opened: Any = connection.connection.driver_connection  # Any: whatever the driver's is
            opened.backup(copy)
            # In one file, which can be read where nothing can be written.
            copy.execute("PRAGMA journal_mode = DELETE")
            copy.execute(f"PRAGMA user_version = {new_mark(closed=True)}")
            (count,) = copy.execute("SELECT count(*) FROM calls").fetchone()
        return int(count)


def back_up(url: str, target: Path) -> int:
    """Copy a ledger in a file of SQLite to a new file, also while an exporter writes to it.

    Returns:
        How many calls the copy holds.

    Raises:
        LedgerError: it cannot be copied; nothing is left behind.
    """
    if make_url(url).get_backend_name() == "postgresql":
        raise LedgerError("ledger: is a database of PostgreSQL; back it up with `pg_dump`")
    source = _BackupSource(url)
    for part in ("", "-wal", "-journal"):
        if os.path.lexists(f"{target}{part}"):
            raise LedgerError(f"{target}{part}: exists already; name another file")
    unfinished = target.with_name(f"{target.name}.unfinished")
    try:
        unfinished.unlink(missing_ok=True)
        unfinished.touch(0o600, exist_ok=False)
        count = source.copy(unfinished)
        unfinished.rename(target)
    except OSError as error:
        raise LedgerError(f"{target}: cannot be written ({error.strerror})") from None
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return count


def open_for_command(url: str) -> Database:
    """Open a ledger for a short while, whether an exporter runs on it or not.

    Args:
        url: as of `open_database`.

    Raises:
        LedgerError: it cannot be used; the message says what to do.
    """
    if make_url(url).get_backend_name() == "postgresql":
        return open_database(url)
    with suppress(LedgerBusyError):
        # Where no exporter runs, it may have to be made, or brought to the newest shape.
        open_database(url).close()
    return _Unlocked(url)
