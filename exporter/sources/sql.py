"""The source `sql:NAME`: queries on databases of users, whose rows are calls.

Queries are patient, read-only, and run for no longer than allowed. What is reported of a database
that fails holds nothing of its address or its users.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final
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
    text,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from exporter.calls import PROVIDER_MEMORY
from exporter.config import CallConfig, SqlConfig, WatchConfig
from exporter.config.databases import database_url
from exporter.config.document import Problems, YamlMapping
from exporter.config.watch import CallReader
from exporter.errors import LedgerError, SourceError
from exporter.ledger.types import BATCH_SIZE, NewCall
from exporter.source_status import SourceStatus
from exporter.sources.source import Source, SourceContext
from exporter.sources.tabular import header_problem, row_to_item
from exporter.threads import SerialThread
from exporter.tracker import CallTracker

OVERLAP: Final = 600.0
"""Seconds: a row is committed some time after the moment that stands in it."""

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

# As MySQL and MariaDB name users who may not: with their address, as the server sees it.
_USER: Final = re.compile(r"'[^']*'@'[^']*'|(?<=\buser )'[^']*'", re.IGNORECASE)
# Options of drivers that name a database, its server or its user.
_PARTS: Final = frozenset(
    {"host", "hostaddr", "port", "user", "password", "dbname", "database", "service", "unix_socket"}
)


def read_since(last: float | None, memory: float, now: float) -> float:
    """Return the time from which on rows are read.

    All times are Unix times, by the clock of the database.

    Args:
        last: when the last complete run began; None before the first.
        memory: how long the ledger remembers a finished call, in seconds. What was read longer ago
            is not read again: it would be counted again.
        now: when this run begins.
    """
    known = now - PROVIDER_MEMORY
    remembered = now - memory
    if last is None:
        return max(known, remembered)
    last = min(last, now)  # the clock was ahead then
    return max(known, last - OVERLAP, min(last, remembered))


class Query:
    """One query on one database, which is connected to anew for each run.

    Args:
        config: the query and the database.
        context: what rows may name.

    Attributes:
        source: its name in metrics.
        digest: the same for the same query on the same database, whatever its password.
        started_at: when it was last run, by the database's clock (Unix time); None for a query
            without `:since`.
    """

    def __init__(self, config: SqlConfig, context: SourceContext) -> None:
        self.source = _source_name(config)
        self.started_at: float | None = None
        self._config = config
        self._accounts, self._labels = context.accounts, context.labels
        self._url = database_url(config.url)
        self._hidden = _address_pattern(self._url)
        self._unlocked: _FileState | None = None  # of an SQLite file that is read without locks
        url = self._url.set(password=None).render_as_string()
        rows = sorted(self._accounts), sorted(self._labels)
        self.digest = hashlib.sha256(
            to_json([config.query, config.account, url, *rows])
        ).hexdigest()

    def batches(
        self, since: Callable[[float], float], problems: Problems
    ) -> Generator[tuple[CallConfig, ...], None, None]:
        """Run the query; yield its calls in batches. Blocking.

        Args:
            since: makes `:since` of the time by the database's clock (Unix times).
            problems: takes what is wrong with rows; the others are yielded.

        Raises:
            SourceError: the database failed; the message holds nothing of its address.
        """
        reader = CallReader(self._accounts, self._labels, problems, (), repeats=True)
        with self._translated(), self._run(since) as found:
            header = list(found.keys())
            if problem := header_problem(header, self._labels):
                raise SourceError(problem)
            lines = count(1)
            for rows in found.partitions(BATCH_SIZE):
                items = [self._item(header, row, next(lines)) for row in rows]
                # A call that is just being placed has no id yet: no mistake, and read again soon.
                items = [item for item in items if "reference_id" in item]
                yield tuple(reader.read((item.line_of("reference_id"), item) for item in items))

    def _item(self, header: Sequence[str], row: Sequence[object], line: int) -> YamlMapping:
        item = row_to_item(header, [_field(value) for value in row], line)
        if self._config.account is not None and "account" not in item:
            item["account"] = self._config.account
            item.lines.append(line)
        return item

    @contextmanager
    def _run(
        self, since: Callable[[float], float]
    ) -> Iterator[CursorResult[Any]]:  # Any: rows of any type
        """Run the query; its rows are fetched as they are read."""
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
            # Nothing that the query may have changed stays.
            connection.rollback()
            if self._unlocked and self._unlocked != _file_state(self._url):
                raise SourceError("the file was changed while it was read; it is read again")

    def _statement(self, since: Callable[[float], float], connection: Connection) -> TextClause:
        query = text(self._config.query)
        if "since" not in query.compile().params:
            return query
        # Before the query: what it does not see yet was written after that. By this machine's clock
        # where the database is of another kind.
        clock = _CLOCKS.get(connection.dialect.name)
        self.started_at = (
            float(connection.exec_driver_sql(clock).scalar_one()) if clock else time.time()
        )
        # Without a zone, because columns mostly are; the session's is UTC.
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
        with self._translated(connecting=True):
            return create_engine(self._url, **options).connect()

    def _open_file(self) -> sqlite3.Connection:
        connection = self._open_read_only()
        # No folder but the ledger's may be writable.
        connection.execute("PRAGMA temp_store = MEMORY")
        end = time.monotonic() + self._config.timeout
        connection.set_progress_handler(lambda: int(time.monotonic() > end), 10_000)
        return connection

    def _open_read_only(self) -> sqlite3.Connection:
        """Open an SQLite file; one that does not exist is an error, not a new database.

        In WAL mode, SQLite wants to make files beside it, also to read. Where it may not, and no
        other program has it open, the file alone is read.
        """
        name = f"file:{quote(self._url.database or '')}?mode=ro"
        self._unlocked = None
        connection = sqlite3.connect(name, uri=True, check_same_thread=False)
        try:
            connection.execute("PRAGMA schema_version")
        except sqlite3.OperationalError as error:
            connection.close()
            refused = error.sqlite_errorcode & 0xFF in _REFUSED
            if not refused or not _in_wal_mode(Path(self._url.database or "")):
                raise
            state = _file_state(self._url)
            if state[-1]:
                raise SourceError(
                    "the file is in WAL mode, and files that belong to it cannot be read; let the "
                    "exporter's user read those that end in `-wal` and `-shm`, or write to the "
                    "folder"
                ) from None
            self._unlocked = state
            name += "&immutable=1"
            return sqlite3.connect(name, uri=True, check_same_thread=False)
        return connection

    @contextmanager
    def _translated(self, *, connecting: bool = False) -> Iterator[None]:
        """Turn whatever a database raises into a `SourceError`.

        Args:
            connecting: nothing has been asked yet; what is said then is all about addresses and
                users.
        """
        try:
            yield
        except DBAPIError as error:
            raise SourceError(self._message(error.orig or error, connecting=connecting)) from None
        except SQLAlchemyError as error:
            # Its own words may hold the statement or the address.
            raise SourceError(f"the query cannot be run ({type(error).__name__})") from None
        except SourceError:
            raise
        except Exception as error:  # noqa: BLE001 - drivers raise what they like, as for odd text
            raise SourceError(f"the driver failed ({type(error).__name__})") from None

    def _message(self, error: BaseException, *, connecting: bool) -> str:
        """Return what a driver, a server or SQLite says, as far as it may be shown."""
        name = type(error).__name__
        said = getattr(getattr(error, "diag", None), "message_primary", None) or ""  # psycopg
        match error.args:
            case (int(number), str(message), *_):  # PyMySQL
                name, said = f"{name} {number}", message
            case _ if isinstance(error, sqlite3.Error):
                said = str(error)
        said = self._hidden.sub("***", _USER.sub("'***'", said.partition("\n")[0]))[:200]
        if connecting and not isinstance(error, sqlite3.Error):  # which says only what is wrong
            said = "it cannot be reached, or refuses the user"
        said = said or "the connection broke, or the driver does not say why"
        return f"the database failed: {said} ({name})"


def _forget_result(raw: object) -> None:
    """Keep PyMySQL from reading a result to its end, which may be far, before it closes.

    There is no other way to have it close in the middle: `SSCursor.close` reads on, and so does the
    result itself once it is garbage, even from a connection that is closed.
    """
    result: Any = getattr(raw, "_result", None)  # Any: a driver's own
    if hasattr(result, "unbuffered_active"):
        result.unbuffered_active = False


_FileState = tuple[int, int, int]
"""What changes when an SQLite file does: its time in nanoseconds, and sizes of it and its -wal."""


def _in_wal_mode(path: Path) -> bool:
    """Whether a file of SQLite says so (https://www.sqlite.org/fileformat2.html, offset 18)."""
    with path.open("rb") as file:
        return file.read(19)[18:] == b"\x02"


def _file_state(url: URL) -> _FileState:
    path = Path(url.database or "")
    found, log = path.stat(), path.with_name(f"{path.name}-wal")
    return found.st_mtime_ns, found.st_size, log.stat().st_size if log.exists() else 0


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


class SqlSource(Source):
    """Runs the queries of a configuration, each at its interval."""

    name = "sql"

    def __init__(self, tracker: CallTracker) -> None:
        super().__init__(tracker)
        self._queries: dict[SqlConfig, SourceContext] = {}
        self._by_name: dict[str, SourceStatus] = {}
        self._changed = asyncio.Event()

    @property
    def statuses(self) -> Sequence[SourceStatus]:
        """The status of each query."""
        return [*self._by_name.values()]

    async def configure(self, watch: WatchConfig, context: SourceContext) -> None:
        """Apply other queries; those that have not changed go on."""
        self._queries = dict.fromkeys(watch.sql, context)
        names = [_source_name(config) for config in watch.sql]
        self._by_name = {name: self._by_name.get(name) or _new_status(name) for name in names}
        self._changed.set()

    async def run(self) -> None:
        """Run the queries, until cancelled."""
        running: dict[SqlConfig, tuple[SourceContext, asyncio.Task[None]]] = {}
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._changed.wait()
                self._changed.clear()
                for config, (context, task) in list(running.items()):
                    if self._queries.get(config) != context:
                        task.cancel()
                        del running[config]
                for config in self._queries.keys() - running.keys():
                    context, status = self._queries[config], self._by_name[_source_name(config)]
                    task = tasks.create_task(self._repeat(config, context, status))
                    running[config] = context, task

    async def _repeat(
        self, config: SqlConfig, context: SourceContext, status: SourceStatus
    ) -> None:
        with closing(SerialThread(status.name)) as thread:
            query = Query(config, context)
            last = await self._cursor(query, config.interval)
            while True:
                started = time.monotonic()
                since = partial(read_since, last, context.memory)
                if await self._run_once(query, thread, since, status):
                    last = query.started_at
                    status.succeed()
                await asyncio.sleep(max(0.0, started + config.interval - time.monotonic()))

    async def _cursor(self, query: Query, interval: float) -> float | None:
        while True:
            try:
                return await self._tracker.cursor(query.source, query.digest)
            except LedgerError:  # counted and logged where it happened
                await asyncio.sleep(interval)

    async def _run_once(
        self,
        query: Query,
        thread: SerialThread,
        since: Callable[[float], float],
        status: SourceStatus,
    ) -> bool:
        """Run a query; return whether every row was read, and every good call was added."""
        problems, refused = Problems(query.source), Counter[str]()
        batches = query.batches(since, problems)
        failure = kind = ""
        try:
            while (batch := await thread.submit(lambda: next(batches, None))) is not None:
                calls = (NewCall(call.account, call.reference_id, call.labels) for call in batch)
                refused += (await self._tracker.add(None, calls)).refused
            if query.started_at is not None and not refused:
                await self._tracker.move_cursor(query.source, query.digest, query.started_at)
        except (SourceError, LedgerError) as error:
            failure = kind = str(error)
        finally:
            # In the thread that opened it, however long that takes: this task may be cancelled.
            thread.submit(batches.close)
        if refused and not failure:
            kind = (
                f"of its calls are beyond `watch.max_calls` (account {', '.join(sorted(refused))})"
            )
            failure = f"{refused.total()} {kind}"
        # Rows are numbered differently in each run: a problem is compared without its number.
        bad_rows = problems.listed()
        kinds = {f"{row.key.partition(']')[2]}: {row.message}" for row in bad_rows if row.line}
        problem = failure or "\n".join(map(str, bad_rows))
        if problem:
            status.count_error()
        status.report("", problem or None, {kind} if failure else kinds)
        return not failure


def _source_name(config: SqlConfig) -> str:
    return f"sql:{config.name}"


def _new_status(name: str) -> SourceStatus:
    status = SourceStatus(name)
    status.configure(shown=True)
    return status


def _field(value: object) -> str:
    """Return a field as text: numbers and UUIDs too; bytes become what no id can be."""
    if value is None:
        return ""
    return "\0" if isinstance(value, bytes | bytearray | memoryview) else str(value)
