"""The interface to a ledger database, and its upgrade to the current schema."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Concatenate, Final, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, insert, inspect, make_url, select, text, update
from sqlalchemy.exc import DBAPIError

from exporter.errors import LedgerConflictError, LedgerError
from exporter.ledger.clock import LedgerClock
from exporter.ledger.schema import (
    HEAD,
    LEASES,
    OLDEST,
    OLDEST_USER,
    alembic_version,
    compatibility,
    metadata,
)

P = ParamSpec("P")
R = TypeVar("R")

READ_TIMEOUT: Final = 5.0
"""The default timeout of statements in `Database.read`, in seconds."""

_TRIES: Final = 10


class Database(ABC):
    """An open ledger database. All methods raise `LedgerError` if it fails.

    Attributes:
        shared: whether several exporters can use it at a time.
    """

    shared: ClassVar[bool]
    engine: Engine

    @abstractmethod
    def translate(self, error: BaseException) -> LedgerError:
        """Translate an exception of the driver to a message that says what to do."""

    @abstractmethod
    def keep_time(self, clock: LedgerClock, *, opened: bool = False) -> None:
        """Synchronize a clock with the database, by setting the clock or storing its offset.

        With `opened`, the ledger was just opened: the clock still shows the machine's time.
        """

    @abstractmethod
    def read(self, timeout: float = READ_TIMEOUT) -> AbstractContextManager[Connection]:
        """Run a read-only transaction on a separate connection, also while `begin` runs one.

        A statement is interrupted with an error after `timeout` seconds.
        """

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Run a transaction: commit at the end, roll back on an exception."""
        with self.translated(), self.engine.begin() as connection:
            yield connection

    def run(
        self, statements: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run statements in a transaction; retry after conflicts with other exporters."""
        for _ in range(_TRIES - 1):
            with suppress(LedgerConflictError), self.begin() as connection:
                return statements(connection, *args, **kwargs)
        with self.begin() as connection:
            return statements(connection, *args, **kwargs)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Translate exceptions of the database to `LedgerError`."""
        try:
            yield
        except sqlite3.Error as error:  # from the driver, without SQLAlchemy
            raise self.translate(error) from None
        except DBAPIError as error:
            # SQLAlchemy's message contains the statement and its parameters: ids and labels.
            raise self.translate(error.orig or error) from None

    def failed(self, problem: str, kind: type[LedgerError] = LedgerError) -> LedgerError:
        """Return an error with a message. Messages are public: they must not contain secrets."""
        return kind(f"ledger: {problem}")

    def upgrade(self, connection: Connection) -> None:
        """Create the schema, or upgrade it to the newest revision.

        The caller holds a lock against other exporters. A newer schema is used as it is if it is
        marked as compatible with this version.

        Raises:
            LedgerError: the database belongs to another program, or is too new or too old.
        """
        found = revision(connection)
        if found is None:
            if inspect(connection).get_table_names():
                raise self.failed(
                    "belongs to another program; name another database in `ledger.url`"
                )
            metadata.create_all(connection, checkfirst=False)
            connection.execute(insert(alembic_version).values(version_num=HEAD))
            connection.execute(insert(compatibility).values(oldest_user=OLDEST_USER))
        elif found == HEAD:
            # Proves that the database can be written.
            connection.execute(update(alembic_version).values(version_num=HEAD))
        elif found > HEAD:
            if not _usable(connection, found):
                raise self.failed(
                    f"was written by a newer esms-exporter (revision {found}); "
                    "upgrade this exporter, or name another database in `ledger.url`"
                )
        elif found < LEASES and found != OLDEST:
            raise self.failed(
                f"was written by an esms-exporter that is too old (revision {found}); "
                "name another database in `ledger.url`"
            )
        elif found < LEASES and (names := _exporters_without_leases(connection)):
            raise self.failed(
                f"is in use by exporters of an older version ({', '.join(names)}), which cannot "
                "share it with this version; stop them first"
            )
        else:
            _migrate(connection)


def _migrate(connection: Connection) -> None:
    # Import Alembic only when needed: that takes a second.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config(attributes={"connection": connection})
    folder = Path(__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    command.upgrade(config, HEAD)


def _exporters_without_leases(connection: Connection) -> list[str]:
    """Return the names of live exporters of versions without leases."""
    if connection.dialect.name != "postgresql":
        return []
    alive = text(
        "SELECT name FROM replicas WHERE ended_at IS NULL "
        "AND beat_at > extract(epoch FROM clock_timestamp()) - heartbeat ORDER BY id"
    )
    return list(connection.scalars(alive))


def revision(connection: Connection) -> str | None:
    """Return the schema revision of a database; None if it holds no ledger."""
    if not inspect(connection).has_table(alembic_version.name):
        return None
    return connection.scalar(select(alembic_version.c.version_num))


def _usable(connection: Connection, found: str) -> bool:
    """Return whether a newer revision is marked as compatible with this version."""
    return (connection.scalar(select(compatibility.c.oldest_user)) or found) <= HEAD


@contextmanager
def open_reader(url: str, *, any_revision: bool = False) -> Iterator[Database]:
    """Open a ledger for `read` and `keep_time`, without creating, upgrading or locking it.

    With `any_revision`, its tables may be those of any version.

    Raises:
        LedgerError: it cannot be read; the message says what to do.
    """
    database: Database
    if make_url(url).get_backend_name() == "postgresql":
        from exporter.ledger.postgresql import PostgresqlDatabase  # noqa: PLC0415

        database = PostgresqlDatabase(url, upgrade=False)
    else:
        from exporter.ledger.sqlite import SqliteReader  # noqa: PLC0415

        database = SqliteReader(url)
    with closing(database):
        with database.read() as connection:
            if (found := revision(connection)) is None:
                raise database.failed("holds no ledger; check `ledger.url`")
            readable = any_revision or (
                found >= OLDEST_USER and (found <= HEAD or _usable(connection, found))
            )
        if not readable:
            raise database.failed(
                f"was written by another version of esms-exporter (revision {found}); use the "
                "command of that version"
            )
        yield database


def open_database(url: str, *, exclusive: bool = True) -> Database:
    """Open a ledger, creating or upgrading it if necessary.

    Args:
        url: for example `sqlite:///esms-exporter.db` or `postgresql://HOST/DATABASE`.
        exclusive: refuse to open an SQLite file that an exporter uses; false for short commands.

    Raises:
        LedgerBusyError: another exporter has the SQLite file open.
        LedgerError: it cannot be used; the message says what to do.
    """
    if make_url(url).get_backend_name() == "postgresql":
        # The driver is an optional dependency.
        from exporter.ledger.postgresql import PostgresqlDatabase  # noqa: PLC0415

        return PostgresqlDatabase(url)
    # These modules import this one.
    from exporter.ledger.sqlite import SqliteDatabase, UnlockedSqliteDatabase  # noqa: PLC0415

    return SqliteDatabase(url) if exclusive else UnlockedSqliteDatabase(url)
