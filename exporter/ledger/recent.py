"""What has finished lately, for the history that the status page shows."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Select, select

from exporter.calls import Result, Status
from exporter.ledger.records import DELETED, Ended
from exporter.ledger.schema import accounts, calls

MOST: Final = 50_000
"""Calls that are read at the start: some tenths of a second."""


MOST_FAILURES: Final = 100
"""Calls that did not succeed, of all accounts, that are read when there are new ones."""


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


def recent(connection: Connection, since: float, most: int = MOST) -> Past:
    """Return the calls that have finished since a Unix time: the newest `most` of them."""
    found = _ended(connection, _ENDED.where(calls.c.finished_at >= since).limit(most))
    found.reverse()
    return Past(found, found[0].finished_at if len(found) == most else since)


def failures(connection: Connection, since: float) -> list[Ended]:
    """Return the newest calls that did not succeed since a Unix time, the newest first."""
    failed = calls.c.finished_at >= since, calls.c.result != Result.SUCCESS.value
    return _ended(connection, _ENDED.where(*failed).limit(MOST_FAILURES))


def _ended(connection: Connection, query: Select[Any]) -> list[Ended]:  # Any: of columns
    return [
        Ended(name, text, Result(result), Status(status), watched, finished)
        for name, text, result, status, watched, finished in connection.execute(query)
    ]
