"""Ledgers as an older version left them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool


def oldest_ledger(url: str, fill: Callable[[Connection], None] = lambda _connection: None) -> None:
    """Make the oldest ledger that can be upgraded in an empty database, and fill it.

    It is as that version made it: `shapes` holds what `pg_dump` and SQLite said of it.
    """
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        shape = Path(__file__).parent / "shapes" / f"0010.{engine.dialect.name}.sql"
        for statement in shape.read_text().split(";\n"):
            if statement:
                connection.exec_driver_sql(statement)
        fill(connection)
