"""An open ledger database, whatever the engine, and how an older one is brought to its shape."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Concatenate, Final, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, insert, inspect, make_url, select, text, update
from sqlalchemy.exc import DBAPIError

from exporter.errors import LedgerBusyError, LedgerConflictError, LedgerError
from exporter.ledger.clock import LedgerClock
from exporter.ledger.schema import HEAD, LEASES, OLDEST, alembic_version, compatibility, metadata

P = ParamSpec("P")
R = TypeVar("R")

READ_TIMEOUT: Final = 5.0
"""Seconds that a statement of `Database.read` may take."""

_TRIES: Final = 10


class Database(ABC):
    """An open ledger database. Whatever uses it raises `LedgerError` where it fails.

    Attributes:
        shared: whether several exporters may have it open at a time.
        engine: SQLAlchemy's.
    """

    shared: ClassVar[bool]
    engine: Engine

    @abstractmethod
    def failure(self, error: BaseException) -> LedgerError:
        """Return what the driver raised, and what a person can do about it, as an error."""

    @abstractmethod
    def keep_time(self, clock: LedgerClock, *, opened: bool = False) -> None:
        """Set a clock by the ledger, or have the ledger remember what it says.

        Args:
            clock: of the exporter.
            opened: it has just begun, by the machine's clock.
        """

    @abstractmethod
    def read(self, timeout: float = READ_TIMEOUT) -> AbstractContextManager[Connection]:
        """Run a read-only transaction on a connection of its own, also while `begin` runs one.

        Args:
            timeout: seconds after which a statement is interrupted, which is an error.
        """

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Run a transaction; commits at the end, rolls back on an exception."""
        with self.translated(), self.engine.begin() as connection:
            yield connection

    def run(
        self, statements: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run statements in a transaction, and again where another exporter's was in its way."""
        for _ in range(_TRIES - 1):
            with suppress(LedgerConflictError), self.begin() as connection:
                return statements(connection, *args, **kwargs)
        with self.begin() as connection:
            return statements(connection, *args, **kwargs)

    def close(self) -> None:
        """Close the database and let others open it."""
        self.engine.dispose()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what the database raises into `LedgerError`."""
        try:
            yield
        except DBAPIError as error:
            # SQLAlchemy's own text holds the statement and its parameters: ids, labels.
            raise self.failure(error.orig or error) from None

    def failed(self, problem: str, kind: type[LedgerError] = LedgerError) -> LedgerError:
        """Return the error that says what is wrong: its message is shown to anybody."""
        return kind(f"ledger: {problem}")

    def upgrade(self, connection: Connection) -> None:
        """Bring the database to the newest shape, in a transaction in which nobody else does.

        One that is newer than this exporter is used as it is where it says that this exporter may.

        Raises:
            LedgerError: it is another program's, too new, or too old.
        """
        found = revision(connection)
        if found is None:
            if inspect(connection).get_table_names():
                raise self.failed(
                    "is the database of another program; name another one in `ledger.url`"
                )
            metadata.create_all(connection, checkfirst=False)
            connection.execute(insert(alembic_version).values(version_num=HEAD))
            connection.execute(insert(compatibility).values(oldest_user=LEASES))
        elif found == HEAD:
            # Proves that the database can be written.
            connection.execute(update(alembic_version).values(version_num=HEAD))
        elif found > HEAD:
            if (_oldest_user(connection) or found) > HEAD:
                raise self.failed(
                    f"was written by a newer esms-exporter (revision {found}); "
                    "upgrade this one, or name another one in `ledger.url`"
                )
        elif found < OLDEST:
            raise self.failed(
                f"was written by an esms-exporter that is too old (revision {found}); "
                "name another one in `ledger.url`"
            )
        elif found < LEASES and (names := _exporters_without_leases(connection)):
            raise self.failed(
                f"is in use by exporters of the version before ({', '.join(names)}), which cannot "
                "share it with this one; stop them first"
            )
        else:
            _migrate(connection)


def _migrate(connection: Connection) -> None:
    # Alembic takes a second to import: only where there is something to do.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config(attributes={"connection": connection})
    folder = Path(__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    command.upgrade(config, HEAD)


def _exporters_without_leases(connection: Connection) -> list[str]:
    """Return the names of exporters that were alive a moment ago."""
    if connection.dialect.name != "postgresql":
        return []
    alive = text(
        "SELECT name FROM replicas WHERE ended_at IS NULL "
        "AND beat_at > extract(epoch FROM clock_timestamp()) - heartbeat ORDER BY id"
    )
    return list(connection.scalars(alive))


def revision(connection: Connection) -> str | None:
    """Return the revision of a database's shape; None where it has none."""
    if not inspect(connection).has_table(alembic_version.name):
        return None
    return connection.scalar(select(alembic_version.c.version_num))


def _oldest_user(connection: Connection) -> str | None:
    """Return the revision of the oldest exporter that can use the database as it is."""
    if not inspect(connection).has_table(compatibility.name):
        return None
    return connection.scalar(select(compatibility.c.oldest_user))


def open_database(url: str, *, beside: bool = False) -> Database:
    """Open a ledger, and bring it to the newest shape.

    Args:
        url: SQLAlchemy's, such as `sqlite:///esms-exporter.db` or `postgresql://HOST/DATABASE`.
        beside: for a short while, whether an exporter runs on it or not.

    Raises:
        LedgerBusyError: another exporter has it open, and it cannot be shared.
        LedgerError: it cannot be used; the message says what to do.
    """
    if make_url(url).get_backend_name() == "postgresql":
        # Its driver is an extra.
        from exporter.ledger.postgresql import PostgresqlDatabase  # noqa: PLC0415

        return PostgresqlDatabase(url)
    # They depend on this module.
    from exporter.ledger.sqlite import SqliteDatabase, UnlockedSqliteDatabase  # noqa: PLC0415

    if not beside:
        return SqliteDatabase(url)
    with suppress(LedgerBusyError):
        # Where no exporter runs, it may have to be made, or brought to the newest shape.
        SqliteDatabase(url).close()
    return UnlockedSqliteDatabase(url)
