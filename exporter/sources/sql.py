"""The watch source of SQL queries: `watch.sql`."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeVar, cast
from urllib.parse import quote

import structlog
from sqlalchemy import Connection, DateTime, Dialect, Engine, bindparam, create_engine, event, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from exporter.calls import PROVIDER_MEMORY
from exporter.config import CallConfig, SqlConfig
from exporter.config.calls import CallReader
from exporter.config.databases import database_url
from exporter.config.document import YamlMapping
from exporter.config.problems import Problems
from exporter.errors import LedgerError, SourceError
from exporter.ledger.records import NewCall
from exporter.metrics.catalogue import Catalogue
from exporter.sources.files import Intake
from exporter.sources.tables import as_item, as_sequence, header_problem

OVERLAP: Final = 600.0
"""Seconds: a row is committed some time after the moment that stands in it."""

BATCH: Final = 1_000
CONNECT_TIMEOUT: Final = 10
FROM_CLIENT: Final = 2000
"""Error numbers of MySQL and MariaDB from here on are the client's, about connecting."""

R = TypeVar("R")
Spawn = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]

_log = structlog.get_logger(__name__)


class Names(NamedTuple):
    """What rows may name: accounts, and labels."""

    accounts: Sequence[str]
    labels: Sequence[str]


def source_name(config: SqlConfig) -> str:
    """Return the source's name in metrics."""
    return f"sql:{config.name}"


class Query:
    """One query, on one database, in a thread of its own. Each run connects anew.

    Args:
        config: what to ask, and whom.
        names: what rows may name.
    """

    def __init__(self, config: SqlConfig, names: Names) -> None:
        self._config = config
        self._names = names
        self._engine: Engine | None = None

    def batches(
        self, since: float, problems: Problems
    ) -> Generator[tuple[CallConfig, ...], None, None]:
        """Run the query; yields its calls batch by batch. Blocking.

        Args:
            since: Unix time, for `:since`.
            problems: takes what is wrong with rows; the others are yielded.

        Raises:
            SourceError: the database failed; the message holds nothing of its address.
        """
        query = text(self._config.query)
        if "since" in query._bindparams:  # noqa: SLF001 - the names are nowhere else
            moment = datetime.fromtimestamp(since, UTC)
            # Without a zone, because columns mostly are; the session's is UTC.
            query = query.bindparams(
                bindparam("since", moment.replace(tzinfo=None), type_=DateTime())
            )
        reader = CallReader(self._names.accounts, self._names.labels, problems, (), repeats=True)
        with (
            _translated(),
            self._connected() as connection,
            connection.execution_options(stream_results=True).execute(query) as found,
        ):
            header = list(found.keys())
            if problem := header_problem(header, self._names.labels):
                raise SourceError(problem)
            line = 1
            for rows in found.partitions(BATCH):
                items = [self._item(header, row, line + n) for n, row in enumerate(rows)]
                lines = range(line, line + len(items))
                line += len(items)
                yield reader.read(as_sequence(items, lines))

    def _item(self, header: Sequence[str], row: Sequence[object], line: int) -> YamlMapping:
        item = as_item(header, [_field(value) for value in row], line)
        if self._config.account is not None and "account" not in item:
            item["account"] = self._config.account
            item.lines.append(line)
        return item

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        if self._engine is None:
            self._engine = _engine(self._config)
        with self._engine.connect() as connection:
            for statement in _settings(connection.dialect, self._config.timeout):
                connection.exec_driver_sql(statement)
            yield connection
            # Nothing that the query may have changed stays.
            connection.rollback()


def _engine(config: SqlConfig) -> Engine:
    url = database_url(config.url)
    options: dict[str, Any] = {"poolclass": NullPool, "hide_parameters": True}  # Any: by driver
    kind = url.get_backend_name()
    if kind == "sqlite":
        path = url.database or ""

        def connect() -> sqlite3.Connection:
            # A file that is not there is an error, not a new database.
            return sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, check_same_thread=False)

        options["creator"] = connect
    options["connect_args"] = _patience(url.get_driver_name(), config.timeout)
    engine = create_engine(url, **options)
    if kind == "sqlite":
        event.listen(engine, "connect", _limit(config.timeout))
    return engine


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
        end = time.monotonic() + timeout
        connection.set_progress_handler(lambda: int(time.monotonic() > end), 10_000)

    return listener


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise SourceError(_words(error.orig or error)) from None
    except SQLAlchemyError as error:
        # Its own words may hold the statement or the address.
        raise SourceError(f"the query cannot be run ({type(error).__name__})") from None
    except SourceError:
        raise
    except Exception as error:  # noqa: BLE001 - drivers raise what they like, as for odd text
        raise SourceError(f"the driver failed ({type(error).__name__})") from None


def _words(error: BaseException) -> str:
    """Return the first line of a driver's words; those about connecting may hold the address."""
    name = type(error).__name__
    if isinstance(error, sqlite3.Error):
        return f"the database failed: {error} ({name})"
    code, message = next(iter(error.args), ""), None
    if isinstance(code, int) and len(error.args) > 1 and code < FROM_CLIENT:
        message = error.args[1]  # PyMySQL
    elif primary := getattr(getattr(error, "diag", None), "message_primary", None):
        message = primary  # psycopg
    shown = str(message).splitlines()[0][:200] if message else "it cannot be reached"
    return f"the database failed: {shown} ({name})"


def _field(value: object) -> str:
    """Return a field as text: numbers and UUIDs too; what is none becomes what no id can be."""
    if value is None:
        return ""
    return "\0" if isinstance(value, bytes | bytearray | memoryview) else str(value)


class SqlSources:
    """Runs the queries of a configuration, each at its interval.

    Args:
        intake: takes the calls.
        metrics: where successes and failures are counted.
        spawn: runs a coroutine in the background, until it is cancelled.
    """

    def __init__(self, intake: Intake, metrics: Catalogue, spawn: Spawn) -> None:
        self._intake = intake
        self._metrics = metrics
        self._spawn = spawn
        self._running: dict[SqlConfig, tuple[Names, asyncio.Task[None]]] = {}

    def configure(self, configs: Sequence[SqlConfig], names: Names) -> None:
        """Go over to other queries; those that have not changed go on."""
        for config, (old, task) in list(self._running.items()):
            if config not in configs or old != names:
                task.cancel()
                del self._running[config]
                if source_name(config) not in map(source_name, configs):
                    self._metrics.show_source(source_name(config), shown=False)
        for config in configs:
            if config not in self._running:
                self._metrics.show_source(source_name(config), shown=True)
                task = self._spawn(self._run(config, names))
                self._running[config] = names, task

    async def _run(self, config: SqlConfig, names: Names) -> None:
        query, source = Query(config, names), source_name(config)
        # Further back, the provider does not know calls any more.
        since, said = time.time() - PROVIDER_MEMORY, ""
        while True:
            begun, started = time.monotonic(), time.time()
            problem = await self._once(query, source, since)
            if problem:
                self._metrics.source_errors.labels(source).value += 1
                if problem != said:
                    _log.warning("query failed", source=source, problem=problem)
            else:
                since = started - OVERLAP
                self._metrics.source_last_success.labels(source).value = time.time()
                if said:
                    _log.info("query is good again", source=source)
            said = problem
            await asyncio.sleep(max(0.0, begun + config.interval - time.monotonic()))

    async def _once(self, query: Query, source: str, since: float) -> str:
        """Run a query once; returns what was wrong, or nothing."""
        problems, refused = Problems(source), 0
        batches = query.batches(since, problems)
        try:
            while (batch := await _beside(lambda: next(batches, None))) is not None:
                calls = (NewCall(call.account, call.reference_id, call.labels) for call in batch)
                refused += (await self._intake.watch(None, calls)).refused
        except SourceError as error:
            return str(error)
        except LedgerError as error:
            await _beside(batches.close)
            return str(error)
        if refused:
            return f"{refused} of its calls are beyond `watch.max_calls`"
        return "\n".join(map(str, problems.told()))


async def _beside(work: Callable[[], R]) -> R:
    """Run blocking work in a thread that does not keep the process from ending.

    Others would be waited for at the end, for as long as a database takes its time.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[R] = loop.create_future()

    def end(result: R | None, error: BaseException | None) -> None:
        if done.done():
            return  # nobody waits any more
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast("R", result))

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            failure = error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(end, result, failure)

    threading.Thread(target=run, daemon=True, name="sql").start()
    return await done
