"""The history of a call: stored events, retention and limits."""

from __future__ import annotations

from exporter.calls import CallbackOutcome, CallState, PollAgain
from exporter.ledger.calls import prune_finished
from exporter.ledger.history import (
    MAX_EVENTS,
    CallEvent,
    CallHistory,
    EventKind,
    add_history,
    call_history,
)
from exporter.ledger.store import Store, StoreSettings
from exporter.ledger.types import Observation, StoredCall
from tests.ledger.machine import Machine
from tests.ledger.test_ledger_store import ANSWERED, NOW, finish, new, observed, push, rows

Shown = tuple[float, str, str, str | None]
WATCHED = (0.0, "watched", "", None)


def change(store: Store, stored: StoredCall, state: CallState, after: float) -> None:
    """Commit a state, and apply it as a poller does."""
    store.commit([observed(stored, PollAgain(state), after)])
    stored.call.state, stored.call.state_since = state, NOW + after


def shown(store: Store, stored: StoredCall) -> list[Shown]:
    """Return the events of a call, with the seconds since it was added."""
    _, events = store.database.run(call_history, stored.call.id)
    return [(at - NOW, event, subject, detail) for _, at, event, subject, detail in events]


def stored_events(store: Store) -> object:
    return rows(store, "SELECT count(*) FROM history")[0][0]


def test_a_life(store: Store, machine: Machine) -> None:
    call, other = push(store, new("a"), new("b"))
    states = ((-0.5, CallState.NOT_FOUND), (4, CallState.QUEUED), (9, CallState.AWAITING_REPORT))
    for after, state in states:
        change(store, call, state, after)
    machine.pass_time(12)
    assert (
        store.database.run(store.record_callback, call.call.id, CallbackOutcome.HINT, 420.5) == {}
    )
    change(store, call, CallState.QUEUED, 15)
    expected: list[Shown] = [
        WATCHED,
        (0.0, "state", "not_found", None),  # known to the second, but not before the call
        (4, "state", "queued", None),
        (9, "state", "awaiting_report", None),
        (12, "callback", "hint", None),
        (15, "state", "queued", None),
    ]
    assert shown(store, call) == expected
    # The answer to a commit was lost: the exporter repeats it.
    for _ in range(2):
        store.commit([observed(call, PollAgain(CallState.NOT_FOUND), 18)])
    ended = Observation("main", call.call, ANSWERED, NOW + 20, from_callback=True)
    assert len(store.commit([ended]).finished) == 1
    assert store.commit([ended]).finished == []
    told = "HTTP status 410: \ud800\0call\n+84 901 888 484" + "x" * 300
    events = [
        CallEvent(call.call.id, NOW + 21, EventKind.FAILED, "crm", told),
        CallEvent(call.call.id, NOW + 22, EventKind.GAVE_UP, "crm", None),
        CallEvent(other.call.id + 1, NOW + 22, EventKind.GAVE_UP, "crm", None),  # no such call
    ]
    for _ in range(2):
        store.database.run(add_history, events)
    expected += [
        (18, "state", "not_found", None),
        (20, "callback", "accepted", None),
        (20, "finished", "success", "answered"),
        (21, "failed", "crm", ("HTTP status 410: call***" + "x" * 300)[:200]),
        (22, "gave_up", "crm", None),
    ]
    assert shown(store, call) == expected
    assert store.database.run(call_history, call.call.id).price == 420.5
    assert shown(store, other) == [WATCHED]
    assert store.database.run(call_history, 99) == CallHistory(None, [])


def test_it_is_kept_as_long_as_the_call(store: Store) -> None:
    (named,) = store.watch("file", [new("named")], NOW).added
    old, deleted, stays = push(store, new("old"), new("deleted"), new("stays"))
    for call in (named, old, deleted, stays):
        change(store, call, CallState.QUEUED, 1)
        change(store, call, CallState.AWAITING_REPORT, 2)
    assert stored_events(store) == 4
    finish(store, old, after=3)
    assert store.database.run(prune_finished, NOW + 4) == 1
    assert stored_events(store) == 3
    assert store.keep_only("file", set()) == [named.call.id]
    assert stored_events(store) == 2
    assert store.delete(deleted.call.id, NOW + 5)
    assert len(store.push([[new("deleted")]], NOW + 6).added) == 1
    assert stored_events(store) == 1
    assert len(shown(store, stays)) == 3


def test_what_is_in_the_row_of_the_call_is_not_stored_twice(
    store: Store, statements: list[str]
) -> None:
    call, other = push(store, new("a"), new("b"))
    change(store, call, CallState.QUEUED, 1)
    statements.clear()
    finish(store, call)
    assert not [one for one in statements if "history" in one]
    assert stored_events(store) == 0
    assert [event for _, event, *_ in shown(store, call)] == ["watched", "state", "finished"]
    # Turned off, nothing is written, and what is there can be read.
    for after, state in enumerate((CallState.NOT_FOUND, CallState.QUEUED), 1):
        change(store, other, state, after)
    store.configure(StoreSettings(history=False))
    statements.clear()
    change(store, other, CallState.AWAITING_REPORT, 3)
    store.database.run(store.record_callback, other.call.id, CallbackOutcome.HINT, 1.0)
    assert not [one for one in statements if "history" in one]
    assert [subject for _, _, subject, _ in shown(store, other)] == [
        *("", "not_found", "awaiting_report")
    ]


def test_nobody_can_fill_the_ledger_through_a_call(store: Store, machine: Machine) -> None:
    call, other = push(store, new("a"), new("b"))
    for _ in range(MAX_EVENTS + 5):
        machine.pass_time(1)
        store.database.run(store.record_callback, call.call.id, CallbackOutcome.HINT, None)
    assert stored_events(store) == MAX_EVENTS
    store.database.run(store.record_callback, other.call.id, CallbackOutcome.HINT, None)
    assert stored_events(store) == MAX_EVENTS + 1
