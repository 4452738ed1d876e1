"""The size of a ledger, for bug reports: read-only, also while an exporter uses it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sqlalchemy import func, inspect, select, text

from exporter.ledger.engine import open_reader, revision
from exporter.ledger.schema import metadata
from exporter.ledger.sqlite import SqliteReader

_TIMEOUT: Final = 60.0  # seconds, to count all rows

_SIZE: Final = text("SELECT pg_total_relation_size(CAST(:table AS regclass))")


def ledger_statistics(url: str) -> dict[str, Any]:  # Any: JSON
    """Return the engine, the schema revision, the size in bytes and the rows of each table.

    Raises:
        LedgerError: there is no ledger, or it cannot be read.
    """
    with open_reader(url, any_revision=True) as database, database.read(_TIMEOUT) as connection:
        names = set(inspect(connection).get_table_names())
        tables = [table for table in metadata.sorted_tables if table.name in names]
        size = 0
        if isinstance(database, SqliteReader):
            for suffix in ("", "-wal"):
                with suppress(OSError):  # a ledger that is not in use has no -wal
                    size += Path(f"{database.path}{suffix}").stat().st_size
        else:
            size = sum(connection.scalar(_SIZE, {"table": table.name}) or 0 for table in tables)
        return {
            "engine": connection.dialect.name,
            "version": ".".join(map(str, connection.dialect.server_version_info or ())),
            "revision": revision(connection),
            "bytes": size,
            "rows": {
                table.name: connection.scalar(select(func.count()).select_from(table))
                for table in tables
            },
        }
