"""Calls as the HTTP API lists them: one, or page by page."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Select, func, or_, select, text

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


def page(
    account_rows: Sequence[int], state: str | None, result: str | None, after: int, limit: int
) -> Select[Any]:  # Any: of columns
    """Return the query of `Store.page`, which reads calls in the order of their rows.

    SQLite must not be led to an index in another order: it would read, and sort, all calls.
    """
    unfinished = state not in (None, FINISHED)
    if unfinished and len(account_rows) == 1:
        # There is an index of these, in this order.
        mine = calls.c.account_id == account_rows[0]
    else:
        mine = (calls.c.account_id + 0).in_(account_rows)
    query = RECORD.where(mine, calls.c.id > after)
    if unfinished:
        query = query.where(calls.c.result.is_(None))
        if state != WATCHED:
            query = query.where(calls.c.state == state)
    else:
        query = query.where(or_(calls.c.result.is_(None), calls.c.result != DELETED))
        if state == FINISHED:
            query = query.where(calls.c.result.is_not(None))
    if result is not None:
        query = query.where(calls.c.result == result)
    return query.order_by(calls.c.id).limit(limit)


def read_in_order(connection: Connection) -> None:
    """Have PostgreSQL read calls in the order of their rows, as `page` means it.

    Of the condition on accounts it knows nothing, expects few calls, and would read and sort all.
    Not for calls that have not finished: these are few, and have an index of their own.
    """
    for way in ("sort", "seqscan"):
        connection.execute(text(f"SET LOCAL enable_{way} = off"))


def records(connection: Connection, query: Select[Any]) -> list[CallRecord]:  # Any: of columns
    """Run a query that was made of `RECORD`."""
    return [
        CallRecord(row, account, name, json.loads(labels), _state(state, rest[1]), *rest)
        for row, account, name, labels, state, *rest in connection.execute(query)
    ]


def records_of(database: Database, rows: Sequence[int]) -> list[CallRecord]:
    """Return calls by their rows; those that are not known any more are left out."""
    with database.begin() as connection:
        return records(connection, RECORD.where(calls.c.id.in_(rows)))


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
