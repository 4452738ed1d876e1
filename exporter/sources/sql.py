"""The source `sql:NAME`: SQL queries on users' databases that return calls as rows.

Queries are read-only and have a timeout. Error messages contain neither the database's address nor
its users.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from pydantic_core import to_json
from sqlalchemy import (
    URL,
    Connection,
    CursorResult,
    DateTime,
    Dialect,
    TextClause,
    bindparam,
    create_engine,
    event,
    func,
    select,
    text,
)
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from exporter.calls import PROVIDER_MEMORY
from exporter.config import CallConfig, SqlConfig, WatchConfig
from exporter.config.databases import database_url
from exporter.config.document import Problems
from exporter.config.validation import LoadContext
from exporter.config.watch import validate_calls
from exporter.errors import LedgerError, SourceError
from exporter.ledger.types import BATCH_SIZE
from exporter.source_status import SourceStatus
from exporter.sources.source import Source, SourceContext, new_call, too_many
from exporter.sources.tabular import header_problem, row_to_item
from exporter.threads import SerialThread
from exporter.tracker import CallTracker

OVERLAP: Final = 600.0
"""Seconds by which the commit of a row may be later than the time in the row."""

CONNECT_TIMEOUT: Final = 10

_IN_UTC: Final = frozenset({"postgresql", "mysql", "mariadb", "sqlite"})
"""Databases whose sessions, and so the clock in them, are in UTC."""

_REFUSED: Final = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)

# User names in messages of MySQL and MariaDB, with the client's address.
_USER: Final = re.compile(r"'[^']*'@'[^']*'|(?<=\buser )'[^']*'", re.IGNORECASE)


def read_since(last: float | None, retention: float, now: float) -> float:
    """Return the Unix time from which rows are read, by the clock of the database.

    Args:
        last: start of the last complete run; None before the first.
        retention: seconds for which the ledger keeps a finished call. Older rows must not be read
            again, because their calls would be counted again.
        now: start of this run.
    """
    known = now - PROVIDER_MEMORY
    remembered = now - retention
    if last is None:
        return max(known, remembered)
    last = min(last, now)  # the clock was set back
    return max(known, last - OVERLAP, min(last, remembered))


class Query:
    """A query on a database; each run opens a new connection.

    Attributes:
        digest: hash of the query and the database without its password.
        started_at: start of the last run by the database's clock (Unix time); None for a query
            without `:since`.
    """

    def __init__(self, config: SqlConfig, context: SourceContext) -> None:
        self.started_at: float | None = None
        self._config, self._context = config, context
        self._url = database_url(config.url)
        self._hidden = _address_pattern(self._url)
        self._unlocked: tuple[int, ...] | None = None  # of an SQLite file read without locks
        url = self._url.set(password=None).render_as_string()
        rows = sorted(context.accounts), sorted(context.labels)
        self.digest = hashlib.sha256(
            to_json([config.query, config.account, url, *rows])
        ).hexdigest()

    def batches(
        self, since: Callable[[float], float], problems: Problems
    ) -> Generator[tuple[CallConfig, ...], None, None]:
        """Run the query, and yield the calls of its valid rows in batches. Blocking.

        `since` returns the value of `:since` for the database's current time (Unix times). Raises a
        `SourceError` without addresses and users if the database fails.
        """
        accounts, labels = self._context.accounts, self._context.labels
        context = LoadContext(
            Path(), problems, accounts=accounts, labels=labels, account=self._config.account
        )
        with self._translated(), self._run(since) as found:
            header = list(found.keys())
            if problem := header_problem(header, labels):
                raise SourceError(problem)
            lines = count(1)
            for rows in found.partitions(BATCH_SIZE):
                items = [
                    (next(lines), row_to_item(header, [_field(value) for value in row]))
                    for row in rows
                ]
                # Not an error: a call that is being placed has no id yet, and is read again soon.
                known = (item for item in items if "reference_id" in item[1])
                yield tuple(validate_calls(known, context))

    @contextmanager
    def _run(
        self, since: Callable[[float], float]
    ) -> Iterator[CursorResult[Any]]:  # Any: rows of any type
        """Run the query; rows are fetched on demand."""
        with self._connect() as connection:
            raw = connection.connection.dbapi_connection
            for setting in _session_settings(connection.dialect, self._config.timeout):
                connection.exec_driver_sql(setting)
            statement = self._statement(since, connection)
            found = connection.execution_options(stream_results=True).execute(statement)
            try:
                yield found
            except BaseException:
                _forget_result(raw)
                connection.invalidate()
                raise
            finally:
                found.close()
            # Undo any change that the query made.
            connection.rollback()
            path = Path(self._url.database or "")
            if self._unlocked and self._unlocked != _file_state(path):
                raise SourceError("the file changed while it was read; the next run reads it again")

    def _statement(self, since: Callable[[float], float], connection: Connection) -> TextClause:
        query = text(self._config.query)
        if "since" not in query.compile().params:
            return query
        # Read the time before the query: rows that the query does not see yet are newer.
        self.started_at = time.time()
        if connection.dialect.name in _IN_UTC:
            now = connection.execute(select(func.current_timestamp())).scalar_one()
            self.started_at = now.replace(tzinfo=UTC).timestamp()
        # Without a time zone, like most columns.
        moment = datetime.fromtimestamp(since(self.started_at), UTC).replace(tzinfo=None)
        return query.bindparams(bindparam("since", moment, type_=DateTime()))

    def _connect(self) -> Connection:
        options: dict[str, Any] = {  # Any: by driver
            "poolclass": NullPool,
            "hide_parameters": True,
            "connect_args": _timeouts(self._url.get_driver_name(), self._config.timeout),
        }
        if self._url.get_backend_name() == "sqlite":
            options["creator"] = self._open_file
        engine = create_engine(self._url, **options)
        event.listen(engine, "handle_error", _close_cursor)
        with self._translated(connecting=True):
            return engine.connect()

    def _open_file(self) -> sqlite3.Connection:
        connection = self._open_read_only(Path(self._url.database or ""))
        # The ledger's folder may be the only writable one.
        connection.execute("PRAGMA temp_store = MEMORY")
        end = time.monotonic() + self._config.timeout
        connection.set_progress_handler(lambda: int(time.monotonic() > end), 10_000)
        return connection

    def _open_read_only(self, path: Path) -> sqlite3.Connection:
        """Open an SQLite file; a missing file is an error, not a new database.

        In WAL mode, even a reader creates files beside the database. If that is not allowed and no
        other program has the database open, only the database file is read.
        """
        name, self._unlocked = f"file:{quote(str(path))}?mode=ro", None
        connection = sqlite3.connect(name, uri=True, check_same_thread=False)
        try:
            connection.execute("PRAGMA schema_version")
        except sqlite3.OperationalError as error:
            connection.close()
            with path.open("rb") as file:
                in_wal_mode = file.read(19)[18:] == b"\x02"  # sqlite.org/fileformat2.html
            if error.sqlite_errorcode & 0xFF not in _REFUSED or not in_wal_mode:
                raise
            self._unlocked = _file_state(path)
            if self._unlocked[-1]:
                raise SourceError(
                    "the file is in WAL mode, and its `-wal` and `-shm` files cannot be read; let "
                    "the exporter's user read them, or write to the folder"
                ) from None
            name += "&immutable=1"
            return sqlite3.connect(name, uri=True, check_same_thread=False)
        return connection

    @contextmanager
    def _translated(self, *, connecting: bool = False) -> Iterator[None]:
        """Map every exception of a database to a `SourceError`, without addresses and users."""
        try:
            yield
        except DBAPIError as error:
            raise SourceError(self._message(error.orig or error, connecting=connecting)) from None
        except SQLAlchemyError as error:
            # The message may contain the statement or the address.
            raise SourceError(f"the query cannot be run ({type(error).__name__})") from None
        except SourceError:
            raise
        except Exception as error:  # noqa: BLE001 - drivers raise any exception for invalid text
            raise SourceError(f"the driver failed ({type(error).__name__})") from None

    def _message(self, error: BaseException, *, connecting: bool) -> str:
        """Return the message of a driver, a server or SQLite without addresses and users."""
        name = type(error).__name__
        said = getattr(getattr(error, "diag", None), "message_primary", None) or ""  # psycopg
        match error.args:
            case (int(number), str(message), *_):  # PyMySQL
                name, said = f"{name} {number}", message
            case _ if isinstance(error, sqlite3.Error):
                said = str(error)
        said = self._hidden.sub("***", _USER.sub("'***'", said.partition("\n")[0]))[:200]
        if connecting and not isinstance(error, sqlite3.Error):  # SQLite's messages are safe
            said = "it cannot be reached, or refuses the user"
        said = said or "connection lost, or no reason given by the driver"
        return f"the database failed: {said} ({name})"


def _close_cursor(context: ExceptionContext) -> None:
    """Close the cursor of a lost connection, which SQLAlchemy leaves open and psycopg warns of."""
    if context.is_disconnect and context.execution_context is not None:
        with suppress(Exception):  # PyMySQL fails to close it
            context.execution_context.cursor.close()


def _forget_result(raw: object) -> None:
    """Make PyMySQL discard the rest of a result, which may be long, when it closes.

    PyMySQL has no method for that: `SSCursor.close` reads the whole result, and so does the
    result's finalizer, even if the connection is closed.
    """
    result: Any = getattr(raw, "_result", None)  # Any: internal to the driver
    if hasattr(result, "unbuffered_active"):
        result.unbuffered_active = False


def _file_state(path: Path) -> tuple[int, int, int]:
    """Return the state of an SQLite file: time in nanoseconds, and the sizes of it and its -wal."""
    found, log = path.stat(), path.with_name(f"{path.name}-wal")
    return found.st_mtime_ns, found.st_size, log.stat().st_size if log.exists() else 0


def _timeouts(driver: str, timeout: float) -> dict[str, int]:
    """Return the driver options that limit the wait for a server."""
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
    """Return statements that make the transaction read-only, limited in time, and in UTC."""
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
    """Return a regular expression for the parts of a database's address in a message."""
    values = [url.host, url.username, url.password, url.database, url.port]
    for texts in url.normalized_query.values():  # may be servers and users, too
        values += ",".join(texts).split(",")
    words = sorted({str(value) for value in values if value}, key=len, reverse=True)
    # Match whole words only; without words, match nothing.
    found = "|".join(map(re.escape, words)) or "(?!)"
    return re.compile(rf"(?<!\w)(?:{found})(?!\w)", re.IGNORECASE)


_Configured: TypeAlias = "tuple[SqlConfig, SourceContext, SourceStatus]"


class SqlSource(Source):
    """Runs the configured queries, each at its interval."""

    name = "sql"

    def __init__(self, tracker: CallTracker) -> None:
        super().__init__(tracker)
        self._queries: list[_Configured] = []
        self._changed = asyncio.Event()

    @property
    def statuses(self) -> Sequence[SourceStatus]:
        return [status for _, _, status in self._queries]

    async def configure(self, watch: WatchConfig, context: SourceContext) -> None:
        """Replace the queries; unchanged ones keep running."""
        known = {status.name: status for status in self.statuses}
        self._queries = []
        for config in watch.sql:
            name = f"sql:{config.name}"
            status = known.get(name) or SourceStatus(name, shown=True)
            self._queries.append((config, context, status))
        self._changed.set()

    async def run(self) -> None:
        running: dict[_Configured, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._changed.wait()
                self._changed.clear()
                configured = set(self._queries)
                for query in running.keys() - configured:
                    running.pop(query).cancel()
                for query in configured - running.keys():
                    running[query] = tasks.create_task(self._repeat(*query))

    async def _repeat(
        self, config: SqlConfig, context: SourceContext, status: SourceStatus
    ) -> None:
        with closing(SerialThread(status.name)) as thread:
            query = Query(config, context)
            while True:
                started = time.monotonic()
                await self._run_once(query, thread, context.retention, status)
                await asyncio.sleep(max(0.0, started + config.interval - time.monotonic()))

    async def _run_once(
        self, query: Query, thread: SerialThread, retention: float, status: SourceStatus
    ) -> None:
        problems, refused = Problems(status.name), Counter[str]()
        failure = ""
        try:
            last = await self._tracker.cursor(status.name, query.digest)
            batches = query.batches(partial(read_since, last, retention), problems)
            try:
                while (batch := await thread.submit(lambda: next(batches, None))) is not None:
                    calls = map(new_call, batch)
                    _, more = await self._tracker.add(None, calls)
                    refused += more
            finally:
                # Close in the same thread, without waiting, because this task may be cancelled.
                thread.submit(batches.close)
            if refused:
                failure = too_many(refused)
            elif query.started_at is not None:
                await self._tracker.move_cursor(status.name, query.digest, query.started_at)
        except (SourceError, LedgerError) as error:
            failure = str(error)
        if not failure:
            status.succeed()
        bad_rows = problems.listed()
        if problem := failure or "\n".join(map(str, bad_rows)):
            status.count_error()
        # Compare problems without row numbers, which differ in each run.
        kinds = {f"{row.key.partition(']')[2]}: {row.message}" for row in bad_rows if row.line}
        status.report("", problem or None, {failure} if failure else kinds)


def _field(value: object) -> str:
    """Return a value as text; bytes become a text that is not a valid id."""
    if value is None:
        return ""
    return "\0" if isinstance(value, bytes | bytearray | memoryview) else str(value)
