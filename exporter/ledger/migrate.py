"""Bringing a database to the newest shape, and seeing whether a newer one can be used."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, insert, inspect, select, text, update

from exporter.ledger.engine import Database
from exporter.ledger.schema import HEAD, alembic_version, compatibility, metadata

_OLDEST: Final = "0010"
"""The first revision of `migrations/versions`."""

_LEASES: Final = "0013"
"""From this revision on, exporters share the ledger by leases."""


def upgrade(database: Database, connection: Connection) -> None:
    """Bring a database to the newest shape.

    One that is newer than this exporter is used as it is where it says that this exporter may.

    Args:
        database: names it in errors.
        connection: in a transaction in which nobody else upgrades.

    Raises:
        LedgerError: it is another program's, too new, or too old.
    """
    found = revision(connection)
    if found is None:
        if inspect(connection).get_table_names():
            raise database.failed(
                "is the database of another program; name another one in `ledger.url`"
            )
        metadata.create_all(connection, checkfirst=False)
        connection.execute(insert(alembic_version).values(version_num=HEAD))
        connection.execute(insert(compatibility).values(oldest_user=_LEASES))
    elif found == HEAD:
        # Proves that the database can be written.
        connection.execute(update(alembic_version).values(version_num=HEAD))
    elif found > HEAD:
        if (_oldest_user(connection) or found) > HEAD:
            raise database.failed(
                f"was written by a newer esms-exporter (revision {found}); "
                "upgrade this one, or name another one in `ledger.url`"
            )
    elif found < _OLDEST:
        raise database.failed(
            f"was written by an esms-exporter that is too old (revision {found}); "
            "name another one in `ledger.url`"
        )
    else:
        if found < _LEASES and (names := _old_exporters(connection)):
            raise database.failed(
                f"is in use by exporters of the version before ({', '.join(names)}), which cannot "
                "share it with this one; stop them first"
            )
        _migrate(connection)


def _migrate(connection: Connection) -> None:
    # Alembic takes a second to import: only where there is something to do.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config(attributes={"connection": connection})
    folder = Path(__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    command.upgrade(config, HEAD)


def _old_exporters(connection: Connection) -> list[str]:
    """Return the names of exporters that know no leases and were alive a moment ago."""
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
