"""Pending and given-up notifications: list, retry, drop and prune them.

The statements run in the caller's transaction. A notification that is sent again by hand moves back
from the given-up ones to the outbox, under the same row id.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

from pydantic_core import from_json
from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Row,
    Select,
    Table,
    and_,
    bindparam,
    delete,
    insert,
    literal,
    not_,
    null,
    select,
    true,
    update,
)

from exporter.ledger.calls import EXAMINED, MAX_PAGE, Page, read_page
from exporter.ledger.clock import LedgerClock
from exporter.ledger.history import CallEvent, EventKind, add_history
from exporter.ledger.json_rows import ROWS, fetch_json, field, is_given, select_json, to_json_rows
from exporter.ledger.schema import given_up_notifications, notifications
from exporter.ledger.types import BATCH_SIZE

NEWEST: Final = 20
"""Given-up notifications of a target that the status page shows."""


class NotificationState(StrEnum):
    """The state of a notification that is not delivered."""

    PENDING = "pending"
    GIVEN_UP = "given_up"


class NotificationRecord(NamedTuple):
    """A notification; times are Unix times of the machine's clock."""

    id: int
    target: str
    account: str
    reference_id: str
    state: NotificationState
    attempts: int
    last_answer: str | None  # outcome and problem of the last attempt; None before the first
    next_due: float | None  # the next attempt; during one, its time limit; None if given up
    give_up_at: float  # its deadline, or when it was given up


_pending: Final = notifications.c
_given_up: Final = given_up_notifications.c
_TABLES: Final[Mapping[NotificationState, Table]] = {
    NotificationState.PENDING: notifications,
    NotificationState.GIVEN_UP: given_up_notifications,
}


def _records(
    state: NotificationState, next_due: ColumnElement[Any], end: ColumnElement[float]
) -> Select[Any]:  # Any: of columns
    """Return a query of the fields of `NotificationRecord`."""
    columns = _TABLES[state].c
    known = *columns["id", "target", "account", "call"], literal(state.value)
    return select(*known, *columns["attempts", "answer"], next_due, end)


_PENDING: Final = _records(NotificationState.PENDING, _pending.due_at, _pending.give_up_at)
_GIVEN_UP: Final = _records(NotificationState.GIVEN_UP, null(), _given_up.gave_up_at)
_RECORDS: Final = {
    NotificationState.PENDING: _PENDING,
    NotificationState.GIVEN_UP: _GIVEN_UP,
}
_now: Final = bindparam("now", type_=Float())


def _locked(table: Table, condition: ColumnElement[bool]) -> Select[Any]:  # Any: of columns
    """Return a query of given notifications that locks them."""
    # In a fixed order, to avoid deadlocks with other exporters and commands.
    found = select(*table.c["id", "target", "call_id"]).where(is_given(table.c.id), condition)
    return select_json(*found.order_by(table.c.id).with_for_update().subquery().c)


_CHANGEABLE: Final = {
    NotificationState.PENDING: _locked(
        notifications, not_(and_(_pending.claimed, _pending.due_at > _now))
    ),
    NotificationState.GIVEN_UP: _locked(given_up_notifications, true()),
}
_deadline: Final = _now + field(1, _pending.give_up_at)
_MOVED: Final = ("id", "target", "account", "call", "call_id", "attempts", "answer")
# As a retry, so that it does not delay new notifications.
_QUEUE: Final = insert(notifications).from_select(
    [*_MOVED, "queued_at", "due_at", "give_up_at", "retry"],
    select(*_given_up[_MOVED], _now, _now, _deadline, true()).join_from(
        ROWS, given_up_notifications, _given_up.id == field(0, _given_up.id)
    ),
    include_defaults=False,
)
_HASTEN: Final = (
    update(notifications)
    .where(_pending.id == field(0, _pending.id))
    .values(due_at=_now, give_up_at=_deadline)
)
_DROP: Final = {
    state: delete(table).where(is_given(table.c.id)) for state, table in _TABLES.items()
}


def list_notifications(
    connection: Connection,
    clock: LedgerClock,
    accounts: Collection[str] | None = None,
    target: str | None = None,
    state: str | None = None,
    after: int = 0,
    limit: int = MAX_PAGE,
    examined: int = EXAMINED,
) -> Page[NotificationRecord]:
    """Return a page of up to `limit` notifications after a row; see `read_page`."""
    scopes = list[tuple[Select[Any], Select[Any]]]()
    for one in [NotificationState(state)] if state else NotificationState:
        columns, records = _TABLES[one].c, _RECORDS[one]
        if accounts is not None:
            records = records.where(columns.account.in_(list(accounts)))
        if target is not None:
            records = records.where(columns.target == target)
        scopes.append((select(columns.id), records))
    rows, following = read_page(connection, scopes, after, limit, examined)
    return Page([_record(row, clock) for row in rows], following)


def find_notifications(
    connection: Connection, clock: LedgerClock, rows: Collection[int]
) -> dict[int, NotificationRecord]:
    """Return those of the given notifications that exist, by row."""
    queries = (
        query.where(_TABLES[state].c.id.in_(list(rows))) for state, query in _RECORDS.items()
    )
    found = (_record(row, clock) for query in queries for row in connection.execute(query))
    return {record.id: record for record in found}


def newest_given_up(
    connection: Connection, clock: LedgerClock, target: str, limit: int = NEWEST
) -> list[NotificationRecord]:
    """Return the notifications of a target that were given up last, the newest first."""
    newest = (
        _GIVEN_UP.where(_given_up.target == target)
        .order_by(_given_up.gave_up_at.desc())
        .limit(limit)
    )
    return [_record(row, clock) for row in connection.execute(newest)]


def _record(row: Row[Any], clock: LedgerClock) -> NotificationRecord:  # Any: of columns
    record = NotificationRecord._make(row)
    due = record.next_due
    return record._replace(
        reference_id=from_json(row.call)["reference_id"],
        state=NotificationState(record.state),
        next_due=None if due is None else due - clock.ahead,
        give_up_at=record.give_up_at - clock.ahead,
    )


def retry_notifications(
    connection: Connection,
    clock: LedgerClock,
    rows: Collection[int],
    give_up_after: Mapping[str, float],
    *,
    history: bool = True,
) -> set[int]:
    """Make up to `BATCH_SIZE` notifications due now, with new deadlines; return their rows.

    Claimed ones, and those of targets that are not configured, are not changed. `give_up_after` are
    the seconds until a notification is given up, by configured target. `history` tells whether to
    write retries of given-up notifications to the history of calls.
    """
    now = clock.now()
    given = {"rows": to_json_rows(rows), "now": now}
    pending, kept = (
        [
            (row, give_up_after[target], target, call)
            for row, target, call in fetch_json(connection, query, **given)
            if target in give_up_after
        ]
        for query in _CHANGEABLE.values()
    )
    if pending:
        connection.execute(_HASTEN, {**given, "rows": to_json_rows(pending)})
    if kept:
        connection.execute(_QUEUE, {**given, "rows": to_json_rows(kept)})
        moved = to_json_rows(row for row, *_ in kept)
        connection.execute(_DROP[NotificationState.GIVEN_UP], {"rows": moved})
    if history:
        events = (
            CallEvent(call, now, EventKind.RETRIED, target)
            for *_, target, call in kept
            if call is not None
        )
        add_history(connection, events)
    return {row for row, *_ in pending + kept}


def drop_notifications(
    connection: Connection, clock: LedgerClock, rows: Collection[int]
) -> set[int]:
    """Delete up to `BATCH_SIZE` notifications except claimed ones; return their rows."""
    given = {"rows": to_json_rows(rows), "now": clock.now()}
    dropped = set[int]()
    for state, query in _CHANGEABLE.items():
        found = [row for row, *_ in fetch_json(connection, query, **given)]
        connection.execute(_DROP[state], {"rows": to_json_rows(found)})
        dropped.update(found)
    return dropped


def prune_given_up(connection: Connection, before: float) -> int:
    """Delete up to `BATCH_SIZE` notifications given up before a Unix time; return how many."""
    old = select(_given_up.id).where(_given_up.gave_up_at < before).limit(BATCH_SIZE)
    return connection.execute(delete(given_up_notifications).where(_given_up.id.in_(old))).rowcount
