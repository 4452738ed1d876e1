"""A ledger opened by a command, beside the exporter that runs on it, if one does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import Connection, make_url

from exporter.errors import LedgerBusyError
from exporter.ledger.engine import Database, open_database
from exporter.ledger.schema import HEAD
from exporter.ledger.sqlite import SqliteDatabase
from exporter.ledger.upgrading import revision


class _BesideSqlite(SqliteDatabase):
    """A file that an exporter may have open: SQLite has transactions wait for each other.

    The lock that keeps a second exporter away is not taken, so that an exporter may start
    meanwhile; what such a lock protects - calls that are polled - is not touched.
    """

    def __init__(self, url: str) -> None:
        self.path = Path(os.path.realpath(make_url(url).database or ""))
        self._opening = True  # by a command: its user is told the path, whatever fails
        self.engine = self._make_engine(url)
        with self.begin() as connection:
            found = revision(connection)
        if found != HEAD:
            self.close()
            raise self.failed(
                "is in use by an exporter of another version; use the command of that one"
            )

    def close(self) -> None:
        """Close the file."""
        Database.close(self)

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        # Past what looks after the lock.
        with super(SqliteDatabase, self)._begin() as connection:
            yield connection


def open_beside(url: str) -> Database:
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
    return _BesideSqlite(url)
