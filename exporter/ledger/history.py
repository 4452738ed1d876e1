"""The history of calls: their events, for the page of a call.

The table holds the events that the row of a call does not: its former states, callbacks, and the
answers of targets to its notifications. A state is added when the next one replaces it. Events are
written in transactions that are needed anyway, and deleted with the call.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from operator import attrgetter, itemgetter
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, func, literal, null, select

# SQLite's compiler accepts this INSERT, too.
from sqlalchemy.dialects.postgresql import Insert, insert

from exporter.calls import CallState
from exporter.ledger.json_rows import ROWS, field, to_json_rows
from exporter.ledger.schema import calls, history
from exporter.secrets import mask_phone_numbers

MAX_EVENTS: Final = 100
"""Maximum of stored events of a call; later ones are dropped."""

_MAX_DETAIL: Final = 200  # the length of the column


class EventKind(StrEnum):
    """The kind of an event; in brackets, its subject and its detail."""

    WATCHED = "watched"  # not stored: the row of the call has it
    STATE = "state"  # a poll changed the state (state)
    CALLBACK = "callback"  # the provider called back (outcome)
    FINISHED = "finished"  # not stored, likewise (result, status)
    DELIVERED = "delivered"  # a notification (target, answer)
    FAILED = "failed"  # an attempt to deliver it (target, problem)
    GAVE_UP = "gave_up"  # a notification (target, problem)
    RETRIED = "retried"  # a notification, by hand (target)


class CallEvent(NamedTuple):
    """An event of a call, by its row; `at` is a Unix time of the ledger's clock."""

    call_id: int
    at: float
    event: str  # of `EventKind`; newer versions may have written others
    subject: str = ""
    detail: str | None = None


class CallHistory(NamedTuple):
    """The price of a call, in VND, and its events, oldest first."""

    price: float | None
    events: list[CallEvent]


def _insert_events(
    values: Iterable[ColumnElement[Any]], *conditions: ColumnElement[bool]
) -> Insert:
    """Return a statement that inserts an event of each call in `ROWS` that has room for it."""
    stored = history.alias()
    count = select(func.count()).where(stored.c.call_id == calls.c.id).scalar_subquery()
    rows = select(*values).join_from(ROWS, calls, calls.c.id == field(0, calls.c.id))
    events = rows.where(*conditions, count < MAX_EVENTS)
    adding = insert(history).from_select(history.c.keys(), events, include_defaults=False)
    return adding.on_conflict_do_nothing()


_ADD: Final = _insert_events(field(number, column) for number, column in enumerate(history.c))
_REPLACED: Final = _insert_events(
    [calls.c.id, calls.c.state_since, literal(EventKind.STATE.value), calls.c.state, null()],
    calls.c.state != CallState.NEW.value,
    calls.c.state != field(1, calls.c.state),
)


def add_replaced_states(connection: Connection, rows: str) -> None:
    """Add the states of calls that are about to change; `rows` has rows and new states, as JSON."""
    connection.execute(_REPLACED, {"rows": rows})


def add_history(connection: Connection, events: Iterable[CallEvent]) -> None:
    """Add events of calls. Repeated events, and those of removed calls, are ignored."""
    # In a fixed order, because the rows of the calls are locked.
    ordered = sorted(events, key=itemgetter(0))
    if ordered:
        rows = [(*event, _clean(detail)) for *event, detail in ordered]
        connection.execute(_ADD, {"rows": to_json_rows(rows)})


def _clean(detail: str | None) -> str | None:
    """Return a text without phone numbers, in one line that fits the column."""
    if detail is None:
        return None
    printable = "".join(character for character in detail if character.isprintable())
    return mask_phone_numbers(printable)[:_MAX_DETAIL]


def call_history(connection: Connection, row: int) -> CallHistory:
    found = connection.execute(select(calls).where(calls.c.id == row)).first()
    if found is None:
        return CallHistory(None, [])
    stored = select(history).where(history.c.call_id == row).order_by(*history.primary_key)
    events = [CallEvent(row, found.first_watched, EventKind.WATCHED)]
    events += [CallEvent(*event) for event in connection.execute(stored)]
    if found.state != CallState.NEW:
        events.append(CallEvent(row, found.state_since, EventKind.STATE, found.state))
    if found.result is not None:
        ending = EventKind.FINISHED, found.result, found.status
        events.append(CallEvent(row, found.finished_at, *ending))
    # States are known to the second.
    events = [event._replace(at=max(event.at, found.first_watched)) for event in events]
    return CallHistory(found.price, sorted(events, key=attrgetter("at")))
