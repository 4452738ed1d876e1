"""Queries on databases of users: patient, read-only, and for no longer than allowed.

What is reported of a database that fails holds nothing of its address or its users.
"""

from __future__ import annotations

import re
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
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from exporter.config.databases import database_url
from exporter.errors import SourceError
from exporter.secrets import Secret

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


_USER: Final = re.compile(r"'[^']*'@'[^']*'|(?<=\buser )'[^']*'", re.IGNORECASE)
"""As MySQL and MariaDB name users who may not: with their address, as the server sees it."""

_PARTS: Final = frozenset(
    {"host", "hostaddr", "port", "user", "password", "dbname", "database", "service", "unix_socket"}
)
"""Options of drivers that name a database, its server or its user."""

_NO_CONNECTION: Final = "it cannot be reached, or refuses the user"
_BROKEN: Final = "the connection broke, or the driver does not say why"


class Database:
    """A database, connected to anew for each question. Blocking.

    Args:
        url: its address.
        timeout: how long it may work on a question, in seconds.
    """

    def __init__(self, url: Secret, timeout: float) -> None:
        self._url = database_url(url)
        self._timeout = timeout
        self._hidden = _address_pattern(self._url)
        self._engine: Engine | None = None
        self._frozen: _FileState | None = None  # of an SQLite file that is read without locks

    @contextmanager
    def ask(
        self, query: Callable[[Callable[[], float]], TextClause]
    ) -> Iterator[CursorResult[Any]]:  # Any: rows of any type
        """Run a query; its rows are fetched as they are read.

        Args:
            query: makes it; may ask for the time by the database's clock (Unix time).

        Raises:
            SourceError: the database failed, here or later.
        """
        with _translated(self._hidden):
            with _translated(self._hidden, connecting=True):
                connection = self._connect()
            with connection:
                raw = connection.connection.dbapi_connection
                for setting in _session_settings(connection.dialect, self._timeout):
                    connection.exec_driver_sql(setting)
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
                if self._frozen and self._frozen != _file_state(self._url):
                    raise SourceError("the file was changed while it was read; it is read again")

    def _connect(self) -> Connection:
        if self._engine is None:
            options: dict[str, Any] = {  # Any: by driver
                "poolclass": NullPool,
                "hide_parameters": True,
                "connect_args": _timeouts(self._url.get_driver_name(), self._timeout),
            }
            if self._url.get_backend_name() == "sqlite":
                options["creator"] = self._open_file
            self._engine = create_engine(self._url, **options)
        return self._engine.connect()

    def _open_file(self) -> sqlite3.Connection:
        connection = self._open_read_only(self._url)
        # No folder but the ledger's may be writable.
        connection.execute("PRAGMA temp_store = MEMORY")
        end = time.monotonic() + self._timeout
        connection.set_progress_handler(lambda: int(time.monotonic() > end), 10_000)
        return connection

    def _open_read_only(self, url: URL) -> sqlite3.Connection:
        """Open an SQLite file; one that does not exist is an error, not a new database.

        In WAL mode, SQLite wants to make files beside it, also to read. Where it may not, and no
        other program has it open, the file alone is read.
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
            state = _file_state(url)
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


class _FileState(NamedTuple):
    """What changes when an SQLite file does: its time in nanoseconds, and sizes in bytes."""

    changed: int
    size: int
    unmerged: int


def _in_wal_mode(path: Path) -> bool:
    """Whether a file of SQLite says so (https://www.sqlite.org/fileformat2.html, offset 18)."""
    with path.open("rb") as file:
        return file.read(19)[18:] == b"\x02"


def _file_state(url: URL) -> _FileState:
    path = Path(url.database or "")
    found, log = path.stat(), path.with_name(f"{path.name}-wal")
    return _FileState(found.st_mtime_ns, found.st_size, log.stat().st_size if log.exists() else 0)


def _timeouts(driver: str, timeout: float) -> dict[str, int]:
    """Return what makes a driver give up on a server that does not answer any more."""
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


def _session_settings(dialect: Dialect, timeout: float) -> list[str]:
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


def _address_pattern(url: URL) -> re.Pattern[str]:
    """Return what finds the parts of a database's address in a message."""
    values = [url.host, url.username, url.password, url.database, url.port]
    for name in _PARTS & url.query.keys():
        value = url.query[name]
        values += (value if isinstance(value, str) else ",".join(value)).split(",")
    words = sorted({str(value) for value in values if value}, key=len, reverse=True)
    # As whole words; with none, nothing is found.
    found = "|".join(map(re.escape, words)) or "(?!)"
    return re.compile(rf"(?<!\w)(?:{found})(?!\w)", re.IGNORECASE)


@contextmanager
def _translated(hidden: re.Pattern[str], *, connecting: bool = False) -> Iterator[None]:
    """Turn whatever a database raises into a `SourceError`.

    Args:
        hidden: finds what a message may not repeat.
        connecting: nothing has been asked yet; what is said then is all about addresses and users.
    """
    try:
        yield
    except DBAPIError as error:
        raise SourceError(_message(error.orig or error, hidden, connecting=connecting)) from None
    except SQLAlchemyError as error:
        # Its own words may hold the statement or the address.
        raise SourceError(f"the query cannot be run ({type(error).__name__})") from None
    except SourceError:
        raise
    except Exception as error:  # noqa: BLE001 - drivers raise what they like, as for odd text
        raise SourceError(f"the driver failed ({type(error).__name__})") from None


def _message(error: BaseException, hidden: re.Pattern[str], *, connecting: bool) -> str:
    """Return what a driver says, as far as it may be shown."""
    number = next(iter(error.args), None)
    name = type(error).__name__
    if isinstance(number, int):  # PyMySQL
        name = f"{name} {number}"
    said = hidden.sub("***", _USER.sub("'***'", _raw_message(error).partition("\n")[0]))[:200]
    if connecting and not isinstance(error, sqlite3.Error):  # which never says more than is wrong
        said = _NO_CONNECTION
    return f"the database failed: {said or _BROKEN} ({name})"


def _raw_message(error: BaseException) -> str:
    """Return what a server, or SQLite, says about a query."""
    match error.args:
        case (int(), str(message), *_):  # PyMySQL
            return message
    if isinstance(error, sqlite3.Error):
        return str(error)
    return getattr(getattr(error, "diag", None), "message_primary", None) or ""  # psycopg
