"""Asking a database of somebody else's: patiently, read-only, and for no longer than allowed."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from sqlalchemy import (
    URL,
    Connection,
    CursorResult,
    Dialect,
    Engine,
    TextClause,
    create_engine,
    event,
)
from sqlalchemy.pool import NullPool

from exporter.config.databases import database_url
from exporter.errors import SourceError
from exporter.secrets import Secret
from exporter.sources.database_errors import parts_of, translated

CONNECT_TIMEOUT: Final = 10

_REFUSED: Final = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)

# Seconds since 1970 by the clocks of databases, within a session in UTC.
_MYSQL: Final = "SELECT unix_timestamp(now(6))"
_CLOCKS: Final = {
    "postgresql": "SELECT extract(epoch FROM clock_timestamp())",
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "sqlite": "SELECT (julianday('now') - 2440587.5) * 86400",
}


class Database:
    """A database, connected to anew for each question. Blocking.

    Args:
        url: its address.
        timeout: how long it may work on a question, in seconds.
    """

    def __init__(self, url: Secret, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._engine: Engine | None = None
        # Of a file of SQLite that is read without locks.
        self._frozen: _State | None = None

    @contextmanager
    def ask(
        self, query: Callable[[Callable[[], float]], TextClause]
    ) -> Iterator[CursorResult[Any]]:  # Any: rows of any type
        """Run a query; its rows are fetched as they are read.

        Args:
            query: makes it; may ask for the time by the database's clock (Unix time).

        Raises:
            SourceError: the database failed, here or later; the message holds nothing of its
                address.
        """
        hidden = parts_of(database_url(self._url))
        with translated(hidden):
            with translated(hidden, connecting=True):
                connection = self._connect()
            with connection:
                raw = connection.connection.dbapi_connection
                for statement in _settings(connection.dialect, self._timeout):
                    connection.exec_driver_sql(statement)
                asked = query(lambda: _time(connection))
                found = connection.execution_options(stream_results=True).execute(asked)
                try:
                    yield found
                except BaseException:
                    _forget_result(raw)
                    connection.invalidate()
                    raise
                finally:
                    found.close()
                # Nothing that the query may have changed stays.
                connection.rollback()
                if self._frozen and self._frozen != _state(database_url(self._url)):
                    raise SourceError("the file was changed while it was read; it is read again")

    def _connect(self) -> Connection:
        if self._engine is None:
            self._engine = self._make_engine()
        return self._engine.connect()

    def _make_engine(self) -> Engine:
        url = database_url(self._url)
        options: dict[str, Any] = {"poolclass": NullPool, "hide_parameters": True}  # Any: by driver
        sqlite = url.get_backend_name() == "sqlite"
        if sqlite:
            options["creator"] = lambda: self._open_file(url)
        options["connect_args"] = _patience(url.get_driver_name(), self._timeout)
        engine = create_engine(url, **options)
        if sqlite:
            event.listen(engine, "connect", _limit(self._timeout))
        return engine

    def _open_file(self, url: URL) -> sqlite3.Connection:
        """Open a file of SQLite read-only; one that is not there is an error, not a new database.

        In WAL mode, SQLite wants to make files beside it, also to read. Where it may not, and no
        other program has it open, it is read as it lies there.
        """
        name = f"file:{quote(url.database or '')}?mode=ro"
        self._frozen = None
        connection = sqlite3.connect(name, uri=True, check_same_thread=False)
        try:
            connection.execute("PRAGMA schema_version")
        except sqlite3.OperationalError as error:
            connection.close()
            refused = error.sqlite_errorcode & 0xFF in _REFUSED
            if not refused or not _in_wal_mode(Path(url.database or "")):
                raise
            state = _state(url)
            if state.unmerged:
                raise SourceError(
                    "the file is in WAL mode, and files that belong to it cannot be read; let the "
                    "exporter's user read those that end in `-wal` and `-shm`, or write to the "
                    "folder"
                ) from None
            self._frozen = state
            name += "&immutable=1"
            return sqlite3.connect(name, uri=True, check_same_thread=False)
        return connection


def _time(connection: Connection) -> float:
    """Return the time by the database's clock; by this machine's where it is of another kind."""
    statement = _CLOCKS.get(connection.dialect.name)
    return float(connection.exec_driver_sql(statement).scalar_one()) if statement else time.time()


def _forget_result(raw: object) -> None:
    """Keep PyMySQL from reading a result to its end, which may be far, before it closes.

    There is no other way to have it close in the middle: `SSCursor.close` reads on, and so does the
    result itself once it is garbage, even from a connection that is closed.
    """
    result: Any = getattr(raw, "_result", None)  # Any: a driver's own
    if hasattr(result, "unbuffered_active"):
        result.unbuffered_active = False


class _State(NamedTuple):
    """What tells whether a file of SQLite was changed: its times and sizes, in ns and bytes."""

    changed: int
    size: int
    unmerged: int


def _in_wal_mode(path: Path) -> bool:
    """Whether a file of SQLite says so (https://www.sqlite.org/fileformat2.html, offset 18)."""
    with path.open("rb") as file:
        return file.read(19)[18:] == b"\x02"


def _state(url: URL) -> _State:
    path = Path(url.database or "")
    found, log = path.stat(), path.with_name(f"{path.name}-wal")
    return _State(found.st_mtime_ns, found.st_size, log.stat().st_size if log.exists() else 0)


def _patience(driver: str, timeout: float) -> dict[str, int]:
    """Return what has a driver give up on a server that is silent, as when its machine is gone."""
    longest = int(timeout) + CONNECT_TIMEOUT
    if driver == "psycopg":
        return {
            "connect_timeout": CONNECT_TIMEOUT,
            "keepalives_idle": CONNECT_TIMEOUT,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": longest * 1000,
        }
    if driver == "pymysql":
        return {
            "connect_timeout": CONNECT_TIMEOUT,
            "read_timeout": longest,
            "write_timeout": longest,
        }
    return {}


def _settings(dialect: Dialect, timeout: float) -> list[str]:
    """Return what makes the transaction read-only, short and in UTC, where there is a way."""
    milliseconds = int(timeout * 1000)
    if dialect.name == "postgresql":
        return [
            "SET TRANSACTION READ ONLY",
            f"SET LOCAL statement_timeout = {milliseconds}",
            "SET LOCAL TIME ZONE 'UTC'",
        ]
    if dialect.name in {"mysql", "mariadb"}:
        limit = f"max_execution_time = {milliseconds}"
        if getattr(dialect, "is_mariadb", False):
            limit = f"max_statement_time = {timeout}"
        return [
            f"SET SESSION {limit}",
            "SET SESSION time_zone = '+00:00'",
            "START TRANSACTION READ ONLY",
        ]
    return []


def _limit(timeout: float) -> Any:  # Any: SQLAlchemy's own signature of a listener
    def listener(connection: sqlite3.Connection, _record: object) -> None:
        # No folder but the ledger's may be writable.
        connection.execute("PRAGMA temp_store = MEMORY")
        end = time.monotonic() + timeout
        connection.set_progress_handler(lambda: int(time.monotonic() > end), 10_000)

    return listener
