"""What has finished lately, for the history that the status page shows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Select, select

from exporter.calls import Result, Status
from exporter.ledger.records import DELETED, Ended
from exporter.ledger.schema import accounts, calls

MOST: Final = 50_000
"""Calls that are read at the start: some tenths of a second."""


class Past(NamedTuple):
    """Finished calls, oldest first, and from when on these are all (Unix time)."""

    calls: list[Ended]
    since: float


_ENDED: Final = (
    select(
        accounts.c.name,
        calls.c.reference_id,
        calls.c.result,
        calls.c.status,
        calls.c.first_watched,
        calls.c.finished_at,
    )
    .join_from(calls, accounts)
    .where(calls.c.result.is_not(None), calls.c.result != DELETED, calls.c.canary_run_id.is_(None))
    .order_by(calls.c.finished_at.desc())
)


def recent(
    connection: Connection, since: float, names: Collection[str] | None = None, most: int = MOST
) -> Past:
    """Return the calls of accounts that have finished since a Unix time: the newest `most`."""
    query = _ENDED.where(calls.c.finished_at >= since).limit(most)
    if names is not None:
        query = query.where(accounts.c.name.in_(list(names)))
    found = _ended(connection, query)
    found.reverse()
    return Past(found, found[0].finished_at if len(found) == most else since)


def ended_of(connection: Connection, rows: Collection[int]) -> dict[int, Ended]:
    """Return those of some calls that have finished, by their rows."""
    query = _ENDED.add_columns(calls.c.id).where(calls.c.id.in_(list(rows)))
    return {row: _call(*rest) for *rest, row in connection.execute(query)}


def _ended(connection: Connection, query: Select[Any]) -> list[Ended]:  # Any: of columns
    return [_call(*row) for row in connection.execute(query)]


def _call(
    name: str, reference_id: str, result: str, status: str, watched: float, finished: float
) -> Ended:
    return Ended(name, reference_id, Result(result), Status(status), watched, finished)
