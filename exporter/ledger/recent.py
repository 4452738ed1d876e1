"""What has finished lately, for the history that the status page shows."""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import Connection, select

from exporter.calls import Result, Status
from exporter.ledger.records import DELETED, Ended
from exporter.ledger.schema import accounts, calls

MOST: Final = 50_000
"""Calls that are read at the start: some tenths of a second."""


class Past(NamedTuple):
    """Finished calls, oldest first, and from when on these are all (Unix time)."""

    calls: list[Ended]
    since: float


def recent(connection: Connection, since: float, most: int = MOST) -> Past:
    """Return the calls that have finished since a Unix time: the newest `most` of them."""
    query = (
        select(
            accounts.c.name,
            calls.c.reference_id,
            calls.c.result,
            calls.c.status,
            calls.c.first_watched,
            calls.c.finished_at,
        )
        .join_from(calls, accounts)
        .where(calls.c.result.is_not(None), calls.c.result != DELETED, calls.c.finished_at >= since)
        .order_by(calls.c.finished_at.desc())
        .limit(most)
    )
    found = [
        Ended(name, text, Result(result), Status(status), watched, finished)
        for name, text, result, status, watched, finished in connection.execute(query)
    ]
    found.reverse()
    return Past(found, found[0].finished_at if len(found) == most else since)
