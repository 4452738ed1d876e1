"""Ledgers as older versions left them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

import exporter.ledger.migrations


def ledger_at(revision: str, url: str, fill: Callable[[Connection], None]) -> None:
    """Make a ledger of a revision in an empty database, and fill it.

    The first one is as that version made it: `shapes` holds what `pg_dump` and SQLite said of it.
    """
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        shape = Path(__file__).parent / "shapes" / f"0010.{engine.dialect.name}.sql"
        for statement in shape.read_text().split(";\n"):
            if statement:
                connection.exec_driver_sql(statement)
        (folder,) = exporter.ledger.migrations.__path__
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", folder)
        command.upgrade(config, revision)
        fill(connection)
