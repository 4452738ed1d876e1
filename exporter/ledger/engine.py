"""An open ledger database, whatever the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import ClassVar

from sqlalchemy import Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError

from exporter.errors import LedgerError


class Database(ABC):
    """An open ledger database.

    Attributes:
        shared: whether several exporters may have it open at a time.
        engine: SQLAlchemy's.
    """

    shared: ClassVar[bool]
    engine: Engine

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called in messages: nothing of it is secret."""

    @abstractmethod
    def explain(self, error: BaseException) -> str:
        """Return what is wrong, and what a person can do about it, for what the driver raised."""

    def close(self) -> None:
        """Close the database and let others open it."""
        self.engine.dispose()

    def begin(self) -> AbstractContextManager[Connection]:
        """Run a transaction; commits at the end, rolls back on an exception.

        Raises:
            LedgerError: the database failed.
        """
        return self._begin()

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
            raise self.failed(self.explain(error.orig or error)) from None

    def failed(self, problem: str) -> LedgerError:
        """Return the error that says what is wrong with it."""
        return LedgerError(f"ledger {self.name}: {problem}")


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
