"""An open ledger database, whatever the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import ClassVar, Concatenate, Final, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError

from exporter.errors import LedgerConflictError, LedgerError
from exporter.ledger.clock import LedgerClock

P = ParamSpec("P")
R = TypeVar("R")

READ_TIMEOUT: Final = 5.0
"""Seconds that a statement of `Database.read` may take."""

_TRIES: Final = 10


class Database(ABC):
    """An open ledger database.

    Attributes:
        shared: whether several exporters may have it open at a time.
        engine: SQLAlchemy's.
    """

    shared: ClassVar[bool]
    engine: Engine

    @abstractmethod
    def explain(self, error: BaseException) -> str:
        """Return what is wrong, and what a person can do about it, for what the driver raised."""

    @abstractmethod
    def keep_time(self, clock: LedgerClock, *, opened: bool = False) -> None:
        """Set a clock by the ledger, or have the ledger remember what it says.

        Args:
            clock: of the exporter.
            opened: it has just begun, by the machine's clock.

        Raises:
            LedgerError: the database failed.
        """

    def close(self) -> None:
        """Close the database and let others open it."""
        self.engine.dispose()

    def begin(self) -> AbstractContextManager[Connection]:
        """Run a transaction; commits at the end, rolls back on an exception.

        Raises:
            LedgerError: the database failed.
        """
        return self._begin()

    @abstractmethod
    def read(self, timeout: float = READ_TIMEOUT) -> AbstractContextManager[Connection]:
        """Run a read-only transaction on a connection of its own, also while `begin` runs one.

        Args:
            timeout: seconds after which a statement is interrupted.

        Raises:
            LedgerError: the database failed, or a statement took too long.
        """

    def run(
        self, statements: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run statements in a transaction, and again where another exporter's was in its way.

        Raises:
            LedgerError: the database failed.
        """
        for _ in range(_TRIES - 1):
            with suppress(LedgerConflictError), self.begin() as connection:
                return statements(connection, *args, **kwargs)
        with self.begin() as connection:
            return statements(connection, *args, **kwargs)

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        with self.translated(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what the database raises into `LedgerError`, with what can be done about it."""
        try:
            yield
        except DBAPIError as error:
            # SQLAlchemy's own text holds the statement and its parameters: ids, labels.
            raise self.failure(error.orig or error) from None

    def failure(self, error: BaseException) -> LedgerError:
        """Return the error that stands for what the driver raised."""
        return self.failed(self.explain(error))

    def failed(self, problem: str, kind: type[LedgerError] = LedgerError) -> LedgerError:
        """Return the error that says what is wrong: its message is shown to anybody."""
        return kind(f"ledger: {problem}")


def open_database(url: str) -> Database:
    """Open a ledger, and bring it to the newest shape.

    Args:
        url: SQLAlchemy's, such as `sqlite:///esms-exporter.db` or `postgresql://HOST/DATABASE`.

    Raises:
        LedgerBusyError: another exporter has it open, and it cannot be shared.
        LedgerError: it cannot be used; the message says what to do.
    """
    if make_url(url).get_backend_name() == "postgresql":
        # Its driver is an extra.
        from exporter.ledger.postgresql import PostgresqlDatabase  # noqa: PLC0415

        return PostgresqlDatabase(url)
    from exporter.ledger.sqlite import SqliteDatabase  # noqa: PLC0415 - they depend on this module

    return SqliteDatabase(url)
