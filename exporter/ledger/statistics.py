"""The size of a ledger, for bug reports: read-only, also while an exporter uses it."""

from __future__ import annotations

from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

from sqlalchemy import func, inspect, make_url, select, text

from exporter.ledger.engine import Database, revision
from exporter.ledger.schema import metadata
from exporter.ledger.sqlite import SqliteReader

_TIMEOUT: Final = 60.0  # seconds, to count all rows

_SIZE: Final = text("SELECT pg_total_relation_size(CAST(:table AS regclass))")


def ledger_statistics(url: str) -> dict[str, Any]:  # Any: JSON
    """Return the engine, the schema revision, the size in bytes and the rows of each table.

    Raises:
        LedgerError: there is no ledger, or it cannot be read.
    """
    if make_url(url).get_backend_name() == "postgresql":
        # The driver is an optional dependency.
        from exporter.ledger.postgresql import PostgresqlDatabase  # noqa: PLC0415

        with closing(PostgresqlDatabase(url, upgrade=False)) as database:
            return _statistics(database)
    file = SqliteReader(url)
    found = _statistics(file)
    for suffix in ("", "-wal"):
        with suppress(OSError):  # a ledger that is not in use has no -wal
            found["bytes"] += Path(f"{file.path}{suffix}").stat().st_size
    return found


def _statistics(database: Database) -> dict[str, Any]:  # Any: JSON
    with database.read(_TIMEOUT) as connection:
        if (found := revision(connection)) is None:
            raise database.failed("holds no ledger")
        names = set(inspect(connection).get_table_names())
        tables = [table for table in metadata.sorted_tables if table.name in names]
        size = 0
        if database.shared:
            size = sum(connection.scalar(_SIZE, {"table": table.name}) or 0 for table in tables)
        return {
            "engine": connection.dialect.name,
            "version": ".".join(map(str, connection.dialect.server_version_info or ())),
            "revision": found,
            "bytes": size,
            "rows": {
                table.name: connection.scalar(select(func.count()).select_from(table))
                for table in tables
            },
        }
