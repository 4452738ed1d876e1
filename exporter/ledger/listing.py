"""Calls as the HTTP API lists them: one, or page by page."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, func, select, text

from exporter.ledger.engine import Database
from exporter.ledger.records import DELETED, CallRecord, Labels
from exporter.ledger.schema import accounts, calls, label_sets

FINISHED: Final = "finished"
"""The state of a call that has a result."""

WATCHED: Final = "watched"
"""Every other state."""

RECORD: Final = (
    select(
        calls.c.id,
        accounts.c.name,
        calls.c.reference_id,
        label_sets.c.labels,
        calls.c.state,
        calls.c.first_watched,
        calls.c.result,
        calls.c.status,
        calls.c.duration,
        calls.c.key,
        calls.c.finished_at,
    )
    .join_from(calls, accounts)
    .join(label_sets)
)
"""The query of all calls."""


MAX_PAGE: Final = 1_000
"""Calls on a page, at most."""

EXAMINED: Final = 20_000
"""Rows that are looked at for a page, at most: some milliseconds."""

Conditions = tuple[ColumnElement[bool], ...]


class Page(NamedTuple):
    """Calls in the order of their rows; `next` is the row to go on after, None at the end."""

    records: list[CallRecord]
    next: int | None


def page(
    database: Database,
    names: Collection[str],
    state: str | None = None,
    result: str | None = None,
    after: int = 0,
    limit: int = MAX_PAGE,
    examined: int = EXAMINED,
) -> Page:
    """Return calls of some accounts, on a connection of its own.

    At most `examined` rows are looked at, in the order of an index: where filters hardly match, a
    page holds few calls, or none, and there are more pages.

    Args:
        database: the ledger.
        names: of accounts.
        state: only calls in this state; `finished` for those that have a result, `watched` for
            all others.
        result: only calls with this result.
        after: only calls after this row.
        limit: how many at most.
        examined: rows that are looked at, at most.

    Raises:
        LedgerError: the database failed, or took too long.
    """
    with database.read() as connection:
        if database.shared:
            # PostgreSQL would sort where it expects few calls, and may be wrong.
            for way in ("sort", "seqscan"):
                connection.execute(text(f"SET LOCAL enable_{way} = off"))
        known = select(accounts.c.id).where(accounts.c.name.in_(names))
        rows = connection.scalars(known).all()
        scopes = _scopes(rows, state, result) if rows else []
        ends = [_end(connection, scope, after, max(1, examined // len(scopes))) for scope in scopes]
        end = min((row for row in ends if row is not None), default=None)
        found: list[CallRecord] = []
        for scope in scopes:
            query = RECORD.where(*scope, calls.c.id > after, *_wanted(rows, state, result))
            if end is not None:
                query = query.where(calls.c.id <= end)
            found += records(connection, query.order_by(calls.c.id).limit(limit))
    found = sorted(found)[:limit]  # no two have the same row, which comes first
    return Page(found, found[-1].id if len(found) == limit else end)


def _scopes(rows: Sequence[int], state: str | None, result: str | None) -> list[Conditions]:
    """Return conditions with an index in the order of rows; what is looked for meets one of them.

    Calls that have not finished have such an index for each account.
    """
    if state not in (None, FINISHED) and result is not None:
        return []  # no call has a result and is in such a state
    if state in (None, FINISHED) or len(rows) > EXAMINED // MAX_PAGE:
        return [()]
    return [(calls.c.account_id == row, calls.c.result.is_(None)) for row in rows]


def _end(connection: Connection, scope: Conditions, after: int, size: int) -> int | None:
    """Return the last of the first `size` rows of an index; None where it has fewer."""
    query = select(calls.c.id).where(*scope, calls.c.id > after)
    return connection.scalar(query.order_by(calls.c.id).offset(size - 1).limit(1))


def _wanted(rows: Sequence[int], state: str | None, result: str | None) -> Conditions:
    """Return the conditions that a call in a window has to meet.

    None of them may lead an engine to an index in another order: it would read, and sort, all
    calls.
    """
    ended = func.coalesce(calls.c.result, "")
    wanted = [
        (calls.c.account_id + 0).in_(rows),
        ended != DELETED,
        func.coalesce(calls.c.canary_run_id, 0) == 0,
    ]
    if state == FINISHED:
        wanted.append(ended != "")
    elif state is not None:
        wanted.append(ended == "")
        if state != WATCHED:
            wanted.append(calls.c.state == state)
    if result is not None:
        wanted.append(ended == result)
    return tuple(wanted)


def records(connection: Connection, query: Select[Any]) -> list[CallRecord]:  # Any: of columns
    """Run a query that was made of `RECORD`."""
    return [
        CallRecord(row, account, name, json.loads(labels), _state(state, rest[1]), *rest)
        for row, account, name, labels, state, *rest in connection.execute(query)
    ]


def count_unfinished(database: Database) -> dict[str, int]:
    """Return how many calls of each account have not finished; 0.1 s for a million."""
    counts = select(calls.c.account_id, func.count().label("calls"))
    by_row = counts.where(calls.c.result.is_(None)).group_by(calls.c.account_id).subquery()
    query = select(accounts.c.name, by_row.c.calls).join_from(accounts, by_row)
    with database.begin() as connection:
        return {row.name: row.calls for row in connection.execute(query)}


def label_sets_of(connection: Connection, rows: Collection[int]) -> dict[int, Labels]:
    """Return sets of labels by their rows, oldest first."""
    if not rows:
        return {}
    columns = select(label_sets.c.id, label_sets.c.labels)
    query = columns.where(label_sets.c.id.in_(list(rows))).order_by(label_sets.c.id)
    return {row: json.loads(labels) for row, labels in connection.execute(query)}


def _state(state: str, result: str | None) -> str:
    if result is None:
        return state
    return DELETED if result == DELETED else FINISHED
