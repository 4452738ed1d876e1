"""Ledgers as older versions left them."""

from __future__ import annotations

from collections.abc import Callable

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine

import exporter.ledger.migrations


def ledger_at(revision: str, url: str, fill: Callable[[Connection], None]) -> None:
    """Make a ledger of a revision in an empty database, and fill it."""
    config = Config()
    (folder,) = exporter.ledger.migrations.__path__
    config.set_main_option("script_location", folder)
    engine = create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        fill(connection)
    engine.dispose()
