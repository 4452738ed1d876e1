"""Pending and given-up notifications: list, retry, drop and prune them.

The statements run in the caller's transaction. A notification that is sent again by hand moves back
from the given-up ones to the outbox, under the same row id.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

from pydantic_core import from_json
from sqlalchemy import (
    Connection,
    Float,
    Select,
    Table,
    and_,
    bindparam,
    delete,
    insert,
    not_,
    null,
    select,
    true,
    update,
)

from exporter.ledger.calls import EXAMINED, MAX_PAGE
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


class NotificationPage(NamedTuple):
    """Notifications by row; the next page starts after row `next`, None at the end."""

    records: list[NotificationRecord]
    next: int | None


_pending: Final = notifications.c
_given_up: Final = given_up_notifications.c
_TABLES: Final[Mapping[NotificationState, Table]] = {
    NotificationState.PENDING: notifications,
    NotificationState.GIVEN_UP: given_up_notifications,
}
_SHOWN: Final = ("id", "target", "account", "call", "attempts", "answer")
_RECORDS: Final[Mapping[NotificationState, Select[Any]]] = {  # Any: of columns
    NotificationState.PENDING: select(*_pending[_SHOWN], *_pending["due_at", "give_up_at"]),
    NotificationState.GIVEN_UP: select(*_given_up[_SHOWN], null(), _given_up.gave_up_at),
}

_now: Final = bindparam("now", type_=Float())
# Locked in a fixed order, to avoid deadlocks with other exporters and commands.
_found_given_up = (
    select(*_given_up["id", "target", "call_id"])
    .where(is_given(_given_up.id))
    .order_by(_given_up.id)
    .with_for_update()
    .subquery()
)
_GIVEN_UP: Final = select_json(*_found_given_up.c)
_found_pending = (
    select(*_pending["id", "target", "call_id"])
    .where(is_given(_pending.id), not_(and_(_pending.claimed, _pending.due_at > _now)))
    .order_by(_pending.id)
    .with_for_update()
    .subquery()
)
_PENDING: Final = select_json(*_found_pending.c)

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
) -> NotificationPage:
    """Return a page of up to `limit` notifications after a row.

    A page reads at most `examined` rows. If few of them match the filters, it holds few
    notifications or none, although more pages follow.
    """
    states = [NotificationState(state)] if state else list(NotificationState)
    ends = list[int]()
    for one in states:
        row = _TABLES[one].c.id
        share = examined // len(states)
        reached = select(row).where(row > after).order_by(row).offset(share - 1).limit(1)
        ends += connection.scalars(reached)
    end = min(ends, default=None)
    found: list[NotificationRecord] = []
    for one in states:
        columns = _TABLES[one].c
        wanted = [columns.id > after]
        if end is not None:
            wanted.append(columns.id <= end)
        if accounts is not None:
            wanted.append(columns.account.in_(list(accounts)))
        if target is not None:
            wanted.append(columns.target == target)
        query = _RECORDS[one].where(*wanted).order_by(columns.id).limit(limit)
        found += _records(connection, clock, one, query)
    found = sorted(found, key=lambda record: record.id)[:limit]
    return NotificationPage(found, found[-1].id if len(found) == limit else end)


def find_notifications(
    connection: Connection, clock: LedgerClock, rows: Collection[int]
) -> dict[int, NotificationRecord]:
    """Return those of the given notifications that exist, by row."""
    return {
        record.id: record
        for state, query in _RECORDS.items()
        for record in _records(
            connection, clock, state, query.where(_TABLES[state].c.id.in_(list(rows)))
        )
    }


def newest_given_up(
    connection: Connection, clock: LedgerClock, target: str, limit: int = NEWEST
) -> list[NotificationRecord]:
    """Return the notifications of a target that were given up last, the newest first."""
    query = _RECORDS[NotificationState.GIVEN_UP].where(_given_up.target == target)
    newest = query.order_by(_given_up.gave_up_at.desc()).limit(limit)
    return list(_records(connection, clock, NotificationState.GIVEN_UP, newest))


def _records(
    connection: Connection,
    clock: LedgerClock,
    state: NotificationState,
    query: Select[Any],  # Any: of columns
) -> Iterator[NotificationRecord]:
    ahead = clock.ahead
    for row, target, account, call, attempts, answer, due_at, give_up_at in connection.execute(
        query
    ):
        yield NotificationRecord(
            row,
            target,
            account,
            from_json(call)["reference_id"],
            state,
            attempts,
            answer,
            None if due_at is None else due_at - ahead,
            give_up_at - ahead,
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

    Claimed ones, and those of targets that are not configured, are not changed.

    Args:
        connection: the connection.
        clock: the clock of the ledger.
        rows: rows of notifications.
        give_up_after: seconds until a notification is given up, by configured target.
        history: whether to write it to the history of calls, for given-up notifications.
    """
    now = clock.now()
    given = {"rows": to_json_rows(rows), "now": now}
    pending, kept = (
        [
            (row, give_up_after[target], target, call)
            for row, target, call in fetch_json(connection, query, **given)
            if target in give_up_after
        ]
        for query in (_PENDING, _GIVEN_UP)
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
    for state, query in (
        (NotificationState.PENDING, _PENDING),
        (NotificationState.GIVEN_UP, _GIVEN_UP),
    ):
        found = [row for row, *_ in fetch_json(connection, query, **given)]
        connection.execute(_DROP[state], {"rows": to_json_rows(found)})
        dropped.update(found)
    return dropped


def prune_given_up(connection: Connection, before: float) -> int:
    """Delete up to `BATCH_SIZE` notifications given up before a Unix time; return how many."""
    old = select(_given_up.id).where(_given_up.gave_up_at < before).limit(BATCH_SIZE)
    return connection.execute(delete(given_up_notifications).where(_given_up.id.in_(old))).rowcount
