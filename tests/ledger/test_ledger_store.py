from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import pytest

from exporter.calls import (
    CallbackOutcome,
    CallState,
    Finished,
    Key,
    PollAgain,
    Receivers,
    Result,
    Status,
    WatchedCall,
)
from exporter.config.validation import MAX_LABEL_VALUE
from exporter.config.watch import MAX_LABELS
from exporter.ids import MAX_REFERENCE_ID_LENGTH, Kind, ReferenceId
from exporter.ledger.calls import (
    find_call,
    list_calls,
    list_sources,
    prune_finished,
    recent_calls,
)
from exporter.ledger.engine import Database
from exporter.ledger.store import PAGE_SIZE, Store, StoreSettings
from exporter.ledger.totals import TotalKey, TotalKind
from exporter.ledger.types import (
    Count,
    FinishedCall,
    InsertResult,
    Labels,
    NewCall,
    Observation,
    StoredCall,
)
from tests.ledger.machine import Machine

NOW = 1_760_000_000.0
OTP = {"campaign": "otp"}
ANSWERED = Finished(Result.SUCCESS, Status.ANSWERED, 13.0, Key.ONE)
BUSY = Finished(Result.SUCCESS, Status.BUSY)


VIETNAMESE = "".join(map(chr, range(0x1EA0, 0x1EFA)))


def new(reference_id: str, labels: Labels | None = None, account: str = "main") -> NewCall:
    return NewCall(account, ReferenceId(reference_id), labels or {})


def push(store: Store, *calls: NewCall, now: float = NOW) -> list[StoredCall]:
    return store.watch(None, calls, now)[0]


def observed(stored: StoredCall, verdict: Finished | PollAgain, after: float = 5.0) -> Observation:
    return Observation(stored.account, stored.call, verdict, NOW + after)


def finish(store: Store, *calls: StoredCall, verdict: Finished = BUSY, after: float = 5.0) -> None:
    store.commit([observed(call, verdict, after) for call in calls])


def pay(store: Store, row: int, price: float) -> dict[TotalKey, float]:
    return store.database.run(store.record_callback, row, CallbackOutcome.HINT, price)


def ids(calls: Iterable[StoredCall]) -> list[str]:
    return [stored.call.reference_id for stored in calls]


def rows(store: Store, query: str) -> list[tuple[object, ...]]:
    with store.database.begin() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]


def test_a_new_call_is_stored_as_it_came(store: Store) -> None:
    (stored,) = push(store, new("Ab-1", OTP))
    assert stored.account == "main"
    assert store.database.run(store.snapshot).label_sets == {stored.call.label_set: OTP}
    call = stored.call
    assert (call.reference_id, call.first_watched, call.state) == ("Ab-1", NOW, CallState.NEW)
    (again,) = store.unfinished("main")
    assert (again.account, again.call.label_set) == ("main", call.label_set)
    assert isinstance(again.call, WatchedCall)
    for name in ("id", "reference_id", "first_watched", "state", "state_since"):
        assert getattr(again.call, name) == getattr(call, name)
    assert rows(store, "SELECT normalized_id, pushed, result FROM calls") == [("ab1", 1, None)]
    assert ids(push(store, new("Ab-1", account="other"))) == ["Ab-1"]
    assert ids(store.unfinished("main")) == ids(store.unfinished("other")) == ["Ab-1"]
    assert store.unfinished("nobody") == []


@pytest.mark.parametrize("source", [None, "config"])
def test_a_call_is_watched_once(store: Store, source: str | None) -> None:
    first, *_, held, _ = store.watch(source, [new("Ab"), new("aB"), new(" AB "), new("x")], NOW)
    assert sorted(text.strip().lower() for text in ids(first)) == ["ab", "x"]
    again, *_, held_again, _ = store.watch(source, [new("AB"), new("y")], NOW + 9)
    assert ids(again) == ["y"]
    assert held_again - held == {again[0].call.id}
    for other in ("other file", None):
        assert store.watch(other, [new("ab"), new("Y")], NOW + 9)[0] == []
    left = store.unfinished("main")
    assert [call.call.first_watched for call in left] == [NOW, NOW, NOW + 9]


def test_what_is_as_long_as_may_be(store: Store) -> None:
    source = f"file:/{'long/' * 200}calls.txt"
    letters = random.Random(1)
    labels = {
        f"{'l' * 62}{n:02}": "".join(letters.choices(VIETNAMESE, k=MAX_LABEL_VALUE))
        for n in range(MAX_LABELS)
    }
    reference_id = "R" * MAX_REFERENCE_ID_LENGTH
    (stored,) = store.watch(source, [new(reference_id, labels, "m" * 64)], NOW).added
    assert store.database.run(list_sources) == [source]
    assert store.database.run(store.snapshot).label_sets == {stored.call.label_set: labels}
    store.commit([observed(stored, PollAgain(max(CallState, key=len)))])
    finish(store, stored, verdict=Finished(max(Result, key=len), max(Status, key=len)))
    assert store.database.run(find_call, "m" * 64, reference_id) is not None


def test_more_calls_than_are_read_at_a_time(store: Store) -> None:
    names = [f"call-{number}" for number in range(PAGE_SIZE + 7)]
    push(store, *map(new, names))
    list_calls = store.unfinished("main")
    assert len(list_calls) == PAGE_SIZE
    rest = store.unfinished("main", list_calls[-1].call.id)
    assert sorted(ids(list_calls) + ids(rest)) == sorted(names)
    assert store.keep_only("config", set()) == []


def test_commits_return_the_newest_call_of_each_total(store: Store) -> None:
    message = NewCall("main", ReferenceId("message"), {}, Kind.MESSAGE)
    first, second, other, sent = push(store, new("a", OTP), new("b", OTP), new("c"), message)
    received = Finished(Result.FAILURE, Status.NONE, receivers=Receivers(2, 1))
    store.configure(StoreSettings(exemplars=True))
    committed = store.commit(
        [
            observed(first, ANSWERED, 3.0),
            observed(second, ANSWERED, 4.0),
            observed(other, BUSY, -1.0),
            observed(sent, received, 9.0),
        ]
    )
    assert {(key.labels, key.total, key.cell): call for key, call in committed.newest.items()} == {
        (first.call.label_set, "calls", "success/answered"): ("b", 1.0, NOW + 4.0),
        (first.call.label_set, "duration", "15.0"): ("b", 13.0, NOW + 4.0),
        (first.call.label_set, "delay", "5.0"): ("b", 4.0, NOW + 4.0),
        (other.call.label_set, "calls", "success/busy"): ("c", 1.0, NOW - 1.0),
        (other.call.label_set, "delay", "1.0"): ("c", 0.0, NOW - 1.0),
        (other.call.label_set, "messages", "success"): ("message", 2.0, NOW + 9.0),
        (other.call.label_set, "messages", "failure"): ("message", 1.0, NOW + 9.0),
        (other.call.label_set, "message_delay", "10.0"): ("message", 9.0, NOW + 9.0),
    }
    store.configure(StoreSettings())
    (last,) = push(store, new("d"))
    assert store.commit([observed(last, ANSWERED)]).newest == {}


def test_a_finished_call_adds_to_the_totals_once(store: Store) -> None:
    (stored,) = push(store, new("a", OTP))
    first = store.commit([observed(stored, ANSWERED)])
    told = first.added
    totals = {
        ("calls", "success/answered"): 1.0,
        ("duration", "15.0"): 1.0,
        ("duration", "sum"): 13.0,
        ("keypresses", "1"): 1.0,
        ("delay", "5.0"): 1.0,
        ("delay", "sum"): 5.0,
    }
    assert {(c.total.value, c.cell): value for c, value in told.items()} == totals
    assert first.ignored == frozenset()
    for late in (ANSWERED, BUSY, PollAgain(CallState.QUEUED)):
        again = store.commit([observed(stored, late, 9.0)])
        assert not again.added
        assert again.ignored == {stored.call.id}
    snapshot = store.database.run(store.snapshot)
    assert snapshot.label_sets == {stored.call.label_set: OTP}
    assert {(c.total.value, c.cell): value for c, value in snapshot.totals.items()} == totals
    assert {(c.account, c.labels) for c in snapshot.totals} == {("main", stored.call.label_set)}
    assert store.unfinished("main") == []
    assert store.watch(None, [new("A")], NOW + 9) == InsertResult(
        [], {}, [Count(0, 1)], Counter(), {stored.call.id}
    )
    kept = rows(store, "SELECT result, status, duration, key, finished_at FROM calls")
    assert kept == [("success", "answered", 13.0, "1", NOW + 5)]


def test_states_are_kept_and_no_delay_is_negative(store: Store) -> None:
    a, b = push(store, new("a"), new("b"))
    changed = store.commit([observed(b, PollAgain(CallState.QUEUED)), observed(a, BUSY, -3600.0)])
    assert {(c.total.value, c.cell): v for c, v in changed.added.items()} == {
        ("calls", "success/busy"): 1.0,
        ("delay", "1.0"): 1.0,
        ("delay", "sum"): 0.0,
    }
    (left,) = store.unfinished("main")
    assert (left.call.state, left.call.state_since) == (CallState.QUEUED, NOW + 5)


def test_a_call_that_nothing_names_is_let_go(store: Store) -> None:
    named = store.watch("config", [new("a"), new("b"), new("c"), new("d")], NOW)
    a, b, _, d = named.added
    store.watch("other file", [new("b")], NOW)
    push(store, new("c"))
    finish(store, d)
    # A second source still names b, c was handed over, d has finished: a alone is let go.
    assert store.keep_only("config", set()) == [a.call.id]
    assert ids(store.unfinished("main")) == ["b", "c"]
    assert store.commit([observed(a, BUSY)]).ignored == {a.call.id}
    assert store.keep_only("other file", set()) == [b.call.id]
    assert ids(store.unfinished("main")) == ["c"]
    # Named again, it is a new call, whose row has never been another's.
    ((again, *_),) = [store.watch("config", [new("a")], NOW)]
    assert again[0].call.id > max(named.rows)


def test_a_call_that_is_kept_stays_whatever_files_say(store: Store) -> None:
    (stored,) = store.watch("calls.txt", [new("a")], NOW)[0]
    row = stored.call.id
    written = "SELECT xmin FROM calls" if store.exporter else "SELECT total_changes()"
    versions = [rows(store, written)]
    for _ in range(2):
        assert store.database.run(store.mark_pushed, row)
        versions.append(rows(store, written))
    # The first time alone costs a commit.
    assert versions[0] != versions[1] == versions[2]
    assert not store.database.run(store.mark_pushed, row + 1)
    assert store.keep_only("calls.txt", set()) == []
    assert ids(store.unfinished("main")) == ["a"]


def test_old_finished_calls_are_forgotten_but_not_their_totals(store: Store) -> None:
    kept, *_ = store.watch("config", [new("named")], NOW)
    finish(store, *kept, *push(store, new("old")), after=0)
    finish(store, *push(store, new("fresh")), after=100)
    push(store, new("unfinished"))
    before = store.database.run(store.snapshot)[:2]
    assert store.database.run(prune_finished, NOW + 50) == 1
    assert store.database.run(prune_finished, NOW + 50) == 0
    assert store.database.run(store.snapshot)[:2] == before
    # What a file still names is not forgotten: it would be watched, and counted, anew.
    assert store.watch("config", [new("named"), new("fresh")], NOW)[0] == []
    assert ids(push(store, new("old"))) == ["old"]


@pytest.mark.parametrize("source", ["config", "file:a"])
def test_what_loses_its_last_name_is_remembered_from_then_on(
    store: Store, machine: Machine, source: str
) -> None:
    named = [new(f"c{number}") for number in range(50)]
    finish(store, *store.watch(source, named, NOW).added)
    # A folder of the network is empty for a moment, long after they finished.
    machine.pass_time(10_000)
    assert store.keep_only(source, set()) == []
    assert store.database.run(prune_finished, NOW + 9_000) == 0
    assert store.watch(source, named, NOW + 10_001).added == []
    assert store.watch("file:other", named[:1], NOW + 10_001).added == []
    # The calls of a file that is gone for good are forgotten, from then on.
    machine.pass_time(10_000)
    assert store.keep_only(source, set()) == []
    assert store.database.run(prune_finished, NOW + 20_000) == 0
    assert store.database.run(prune_finished, NOW + 20_001) == 49


@pytest.mark.parametrize("retention", [1.0, 60.0, 3_600.0])
def test_what_is_named_again_is_not_forgotten_however_short_the_retention(
    store: Store, machine: Machine, retention: float
) -> None:
    store.configure(StoreSettings(retention=retention))
    called_back, *_ = stored = push(store, *map(new, ("called-back", "queried", "pushed", "old")))
    finish(store, *stored, after=0)
    (deleted,) = push(store, new("deleted"))
    assert store.delete(deleted.call.id, NOW)
    for number in range(20):
        machine.pass_time(retention / 4)
        now = machine.wall
        assert push(store, new("queried"), now=now) == []
        assert store.push([[new("PUSHED")]], now).added == []
        assert store.database.run(store.mark_pushed, called_back.call.id)
        assert store.database.run(store.mark_pushed, deleted.call.id)
        assert store.database.run(prune_finished, now - retention) == (number == 4)
    assert store.database.run(prune_finished, machine.wall + 1) == 4
    assert not store.database.run(store.mark_pushed, deleted.call.id)


def test_a_deleted_call_stays_deleted(store: Store, database: Database) -> None:
    (call,), *_ = store.watch("file:a", [new("a", OTP)], NOW)
    push(store, new("other"))
    assert store.delete(call.call.id, NOW + 1)
    assert not store.delete(call.call.id, NOW + 2)
    assert pay(store, call.call.id, 350.0) == pay(store, 9, 350.0) == {}
    assert store.commit([observed(call, BUSY)]).ignored == {call.call.id}
    assert store.database.run(store.snapshot).totals == {}
    assert [record.reference_id for record in list_calls(database, ["main"]).records] == ["other"]
    assert (found := store.database.run(find_call, "main", "A")) is not None
    assert found.state == "deleted"
    # A query that still returns it does not bring it back, but keeps it from being forgotten.
    assert push(store, new("A"), now=NOW + 5_000) == []
    assert store.database.run(prune_finished, NOW + 4_000) == 0
    # It left its room to others.
    store.configure(StoreSettings(max_calls=2))
    assert store.watch(None, [new("next")], NOW).refused == {}
    store.configure(StoreSettings())
    # Who hands it over again means it, and so does a file.
    for source in (None, "file:a"):
        wanted = [new("A")]
        if source is None:
            (revived,) = store.push([wanted], NOW + 6_000).added
        else:
            (revived,) = store.watch(source, wanted, NOW + 6_000).added
        assert revived.call.id > call.call.id
        assert store.delete(revived.call.id, NOW + 7_000)
    assert store.database.run(prune_finished, NOW + 8_000) == 1
    assert ids(push(store, new("a"))) == ["a"]
    assert rows(store, "SELECT count(*) FROM call_sources") == [(0,)]


@pytest.mark.parametrize(
    ("before", "after", "total"),
    [
        ([], [], 0.0),
        ([350.5], [], 350.5),
        # Until it has finished, what came last is known best.
        ([0.0, 350.0], [], 350.0),
        ([350.0, 0.0], [], 0.0),
        ([100.0, 350.0], [], 350.0),
        # Once it has finished, the first price counts; 0 has added nothing.
        ([], [350.0, 350.0], 350.0),
        ([], [0.0, 350.0, 0.0, 400.0], 350.0),
        ([0.0], [0.0, 350.0], 350.0),
        ([350.0, 0.0], [350.0], 350.0),
        ([350.0], [0.0, 400.0], 350.0),
    ],
)
def test_a_price_is_added_once(
    store: Store, before: list[float], after: list[float], total: float
) -> None:
    (stored,) = push(store, new("a", OTP))
    row = stored.call.id
    assert [pay(store, row, price) for price in before] == [{} for _ in before]
    told = [dict(store.commit([observed(stored, BUSY)]).added)]
    told += [pay(store, row, price) for price in after]
    live = sum(v for added in told for c, v in added.items() if c.total is TotalKind.PRICE)
    kept = sum(
        v
        for c, v in store.database.run(store.snapshot).totals.items()
        if c.total is TotalKind.PRICE
    )
    assert (live, kept) == (total, total)
    assert rows(store, "SELECT coalesce(price, 0.0) FROM calls") == [(total,)]


def test_what_finished_lately(store: Store) -> None:
    failed = Finished(Result.FAILURE, Status.FAILED)
    old, first, last, deleted, _ = push(
        store, new("old"), new("First"), new("last", account="b"), new("deleted"), new("open")
    )
    finish(store, old, after=10)
    finish(store, last, verdict=failed, after=30)
    finish(store, first, after=20)
    store.delete(deleted.call.id, NOW + 25)
    calls = [
        FinishedCall("main", "old", "success", "busy", None, None, {}, NOW, NOW + 10),
        FinishedCall("main", "First", "success", "busy", None, None, {}, NOW, NOW + 20),
        FinishedCall("b", "last", "failure", "failed", None, None, {}, NOW, NOW + 30),
    ]
    assert store.database.run(recent_calls, NOW + 15) == (calls[1:], NOW + 15)
    assert store.database.run(recent_calls, NOW, ["main"]) == (calls[:2], NOW)
    # They are all since the oldest of them: there may be others before it.
    assert store.database.run(recent_calls, NOW, limit=2) == (calls[1:], NOW + 20)
    # By a clock that is an hour behind that of the ledger.
    times = [(call.first_watched, call.finished_at) for call in calls]
    found, since = store.database.run(recent_calls, NOW - 3600 + 15, ahead=3600.0)
    assert [(call.first_watched + 3600, call.finished_at + 3600) for call in found] == times[1:]
    assert since == NOW - 3600 + 15


def test_sums_do_not_depend_on_their_order(store: Store) -> None:
    durations = [0.1 * number for number in range(1, 30)]
    live = 0.0
    for number, seconds in enumerate(durations):
        (call,) = push(store, new(f"c{number}"))
        done = Finished(Result.SUCCESS, Status.ANSWERED, seconds)
        added = store.commit([observed(call, done)]).added
        live += sum(v for c, v in added.items() if c[2:] == (TotalKind.DURATION, "sum"))
    totals = store.database.run(store.snapshot).totals.items()
    (read,) = (value for cell, value in totals if cell[2:] == (TotalKind.DURATION, "sum"))
    assert read == pytest.approx(sum(durations), abs=29 / 2048)
    assert live == read
