"""Bringing a database to the newest shape, and seeing whether a newer one can be used."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text

from exporter.ledger.engine import Database
from exporter.ledger.schema import HEAD

_LEASES: Final = "0013"
"""From this revision on, exporters share the ledger by leases."""

_MIGRATIONS: Final = Path(__file__).parent / "migrations"


def upgrade(database: Database, connection: Connection) -> None:
    """Bring a database to the newest shape.

    One that is newer than this exporter is used as it is where it says that this exporter may.

    Args:
        database: names it in errors.
        connection: in a transaction in which nobody else upgrades.

    Raises:
        LedgerError: it is another program's, or too new.
    """
    found = revision(connection)
    if found == HEAD:
        # Alembic proves by writing that the database can be written; so does this.
        connection.execute(text("UPDATE alembic_version SET version_num = version_num"))
        return
    if found is None and inspect(connection).get_table_names():
        raise database.failed(
            "is the database of another program; name another one in `ledger.url`"
        )
    # Alembic takes a second to import: only where there is something to do.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        if _oldest_user(connection) in known:
            return
        raise database.failed(
            f"was written by a newer esms-exporter (revision {found}); "
            "upgrade this one, or name another one in `ledger.url`"
        )
    if found is not None and found < _LEASES and (names := _old_exporters(connection)):
        raise database.failed(
            f"is in use by exporters of the version before ({', '.join(names)}), which cannot "
            "share it with this one; stop them first"
        )
    config.attributes["connection"] = connection
    command.upgrade(config, HEAD)


def _old_exporters(connection: Connection) -> list[str]:
    """Return the names of exporters that know no leases and were alive a moment ago."""
    if connection.dialect.name != "postgresql" or not inspect(connection).has_table("replicas"):
        return []
    alive = text(
        "SELECT name FROM replicas WHERE ended_at IS NULL "
        "AND beat_at > extract(epoch FROM clock_timestamp()) - heartbeat ORDER BY id"
    )
    return list(connection.scalars(alive))


def revision(connection: Connection) -> str | None:
    """Return the revision of a database's shape; None where it has none."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _oldest_user(connection: Connection) -> str | None:
    """Return the revision of the oldest exporter that can use the database as it is."""
    if not inspect(connection).has_table("compatibility"):
        return None
    return connection.execute(text("SELECT oldest_user FROM compatibility")).scalar()
