"""What is to be told of finished calls: written with the finish, and claimed by one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from sqlalchemy import event, select

from exporter.calls import CallState, Finished, PollAgain, ReferenceId, Result, Status
from exporter.errors import LedgerError
from exporter.ledger import outbox as module
from exporter.ledger.engine import Database, open_database
from exporter.ledger.outbox import FARTHEST, Backlog, Notification, Outbox, Settled
from exporter.ledger.records import CHUNK, NewCall, Observation, StoredCall
from exporter.ledger.schema import calls, notifications
from exporter.ledger.store import Store
from exporter.webhook.routes import Route

BUSY = Finished(Result.SUCCESS, Status.BUSY)
FAILED = Finished(Result.FAILURE, Status.FAILED)
DAY = 86_400.0
NOTHING = Settled()


def route(target: str, results: tuple[str, ...] | None = None, **labels: str) -> Route:
    wanted = {name: {value} for name, value in labels.items()}
    return Route(target, DAY, None, results, None, wanted)


class Clock:
    """The ledger's clock, in the hands of a test."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "_clock", lambda _: clock.now)
    return clock


@pytest.fixture
def outbox(database: Database, store: Store, clock: Clock) -> Outbox:
    store.routes = (route("t"),)
    return Outbox(database)


def push(store: Store, *names: str, account: str = "main", **labels: str) -> list[StoredCall]:
    return store.watch(None, [NewCall(account, ReferenceId(name), labels) for name in names], 1.0)[
        0
    ]


def finish(store: Store, stored: list[StoredCall], verdict: Finished = BUSY) -> frozenset[str]:
    committed = store.commit([Observation(one.account, one.call, verdict, 5.0) for one in stored])
    return committed.notify


def claim(
    outbox: Outbox, most: int = 10, settled: Settled = NOTHING, *, failing: bool = False
) -> list[Notification]:
    return outbox.step("t", settled, most, 60.0, failing=failing).claimed


def named(found: list[Notification]) -> list[str]:
    return [json.loads(one.body)["data"]["reference_id"] for one in found]


def test_what_is_not_told_costs_nothing(database: Database, store: Store) -> None:
    statements: list[str] = []
    event.listen(
        database.engine, "before_cursor_execute", lambda *given: statements.append(given[2])
    )
    finish(store, push(store, "a"))
    assert not [text for text in statements if "notifications" in text]


def test_a_finish_and_what_is_told_of_it_are_one(store: Store, outbox: Outbox) -> None:
    assert finish(store, push(store, "a", "B", campaign="otp")) == {"t"}
    found = claim(outbox)
    assert named(found) == ["a", "B"]
    assert json.loads(found[0].body)["id"] == found[0].event
    assert json.loads(found[0].body)["data"]["labels"] == {"campaign": "otp"}


def test_neither_is_written_where_the_other_cannot_be(
    database: Database, store: Store, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = push(store, "a")

    def broken(*_: object) -> frozenset[str]:
        raise LedgerError("it breaks after the finish")

    with monkeypatch.context() as patch:
        patch.setattr("exporter.ledger.commit.queue", broken)
        with pytest.raises(LedgerError):
            finish(store, stored)
    with database.begin() as connection:
        assert connection.scalars(select(calls.c.result)).all() == [None]
        assert connection.scalars(select(notifications.c.id)).all() == []
    finish(store, stored)
    assert named(claim(outbox)) == ["a"]


def test_only_what_counts_is_told(store: Store, outbox: Outbox) -> None:
    stored = push(store, "twice", "deleted", "goes-on")
    store.delete(stored[1].call.id, 2.0)
    finish(store, stored[:2])
    assert finish(store, stored[:2], FAILED) == frozenset()
    store.commit([Observation("main", stored[2].call, PollAgain(CallState.QUEUED), 5.0)])
    (found,) = claim(outbox)
    assert named([found]) == ["twice"]
    assert json.loads(found.body)["data"]["result"] == "success"


def test_each_target_is_told_what_it_wants(store: Store, outbox: Outbox) -> None:
    store.routes = (route("all"), route("bad", ("failure",)), route("otp", campaign="otp"))
    assert finish(store, push(store, "a")) == {"all"}
    assert finish(store, push(store, "b", campaign="otp"), FAILED) == {"all", "bad", "otp"}
    found = {
        target: named(outbox.step(target, NOTHING, 9, 60.0, failing=False).claimed)
        for target in ("all", "bad", "otp")
    }
    assert found == {"all": ["a", "b"], "bad": ["b"], "otp": ["b"]}


def test_many_targets_of_many_calls(store: Store, outbox: Outbox) -> None:
    store.routes = tuple(route(f"t{number}") for number in range(3))
    finish(store, push(store, *(f"c{number}" for number in range(CHUNK))))
    assert [outbox.backlog(f"t{number}").pending for number in range(3)] == [CHUNK] * 3


def test_what_is_claimed_is_nobody_elses_until_the_claim_ends(
    store: Store, outbox: Outbox, clock: Clock
) -> None:
    finish(store, push(store, "a", "b", "c"))
    assert named(claim(outbox, 2)) == ["a", "b"]
    assert named(claim(outbox)) == ["c"]
    assert outbox.step("t", NOTHING, 1, 60.0, failing=False).due_in == 60
    clock.now += 61
    again = claim(outbox)
    assert [(one.attempts, *named([one])) for one in again] == [(2, "a"), (2, "b"), (2, "c")]


@pytest.mark.parametrize("outcome", ["delivered", "refused"])
def test_what_is_done_with_is_counted_once(store: Store, outbox: Outbox, outcome: str) -> None:
    finish(store, push(store, "a", "b"))
    found = claim(outbox)
    delivered = outcome == "delivered"
    settled = Settled(delivered=found) if delivered else Settled(refused=found)
    for expected in (2, 0):  # as from another exporter, whose claim had ended
        step = outbox.step("t", settled, 9, 60.0, failing=False)
        counted = step.delivered if delivered else step.gave_up
        assert (counted, step.claimed, step.due_in) == (expected, [], None)


def test_what_failed_comes_again_later(store: Store, outbox: Outbox, clock: Clock) -> None:
    finish(store, push(store, "a", "b"))
    a, b = claim(outbox)
    assert claim(outbox, settled=Settled(put_off=[(a, 5.0), (b, 10.0)])) == []
    clock.now += 5
    assert named(claim(outbox)) == ["a"]
    clock.now += 5
    assert named(claim(outbox)) == ["b"]


def test_what_was_not_tried_comes_again_at_once(store: Store, outbox: Outbox) -> None:
    finish(store, push(store, "a"))
    (a,) = claim(outbox)
    assert claim(outbox, settled=Settled(released=[a])) == [a]


def test_who_is_late_does_not_touch_a_newer_claim(
    store: Store, outbox: Outbox, clock: Clock
) -> None:
    finish(store, push(store, "a"))
    (late,) = claim(outbox)
    clock.now += 61
    (newer,) = claim(outbox)
    for settled in (Settled(put_off=[(late, 1.0)]), Settled(released=[late])):
        assert claim(outbox, settled=settled) == []
    clock.now += 2
    assert claim(outbox) == []
    assert outbox.settle(Settled(delivered=[newer])).delivered == 1


def test_the_last_attempt_is_when_the_time_is_over(
    store: Store, outbox: Outbox, clock: Clock
) -> None:
    finish(store, push(store, "a"))
    (a,) = claim(outbox)
    clock.now += DAY - 30
    outbox.settle(Settled(put_off=[(a, 900.0)]))
    clock.now += 30
    (a,) = claim(outbox)
    assert outbox.settle(Settled(put_off=[(a, 900.0)])).gave_up == 1
    assert outbox.backlog("t") == Backlog(0, None)


def test_an_old_one_is_tried_before_it_is_given_up(
    store: Store, outbox: Outbox, clock: Clock
) -> None:
    finish(store, push(store, "a", "b"))
    clock.now += 2 * DAY
    (a,) = claim(outbox, 1)
    step = outbox.step("t", Settled(put_off=[(a, 5.0)]), 0, 60.0, failing=True)
    # One by its failure, the other because there is nobody who could take it.
    assert (step.gave_up, step.due_in) == (2, None)


def test_the_backlog(store: Store, outbox: Outbox, clock: Clock) -> None:
    finish(store, push(store, "a"))
    first = clock.now
    clock.now += 100
    finish(store, push(store, "b"))
    assert outbox.backlog("t") == Backlog(2, first)
    assert outbox.backlog("another") == Backlog(0, None)


def test_a_clock_that_is_set_back_puts_nothing_off(
    store: Store, outbox: Outbox, clock: Clock
) -> None:
    finish(store, push(store, "a"))
    clock.now -= FARTHEST + 1
    assert claim(outbox) == []
    outbox.backlog("t")
    assert named(claim(outbox)) == ["a"]


def test_the_next_start_sends_at_once_what_was_claimed(
    database: Database, store: Store, outbox: Outbox
) -> None:
    finish(store, push(store, "a"))
    claim(outbox)
    outbox.free()
    # Where others share the ledger, one of them may be at it.
    assert named(claim(outbox)) == ([] if database.shared else ["a"])


def test_what_nobody_sends_is_kept_until_its_time_is_over(
    store: Store, outbox: Outbox, clock: Clock
) -> None:
    finish(store, push(store, "a"))
    assert outbox.forget([]) == 0
    clock.now += DAY
    assert outbox.forget(["t", "u"]) == 0
    assert outbox.forget(["u"]) == 1


@pytest.fixture
def other(shared_url: str) -> Iterator[Database]:
    database = open_database(shared_url)
    yield database
    database.close()


def test_two_exporters_claim_different_ones(shared_url: str, other: Database) -> None:
    database = open_database(shared_url)
    store, mine, theirs = Store(database), Outbox(database), Outbox(other)
    store.routes = (route("t"),)
    finish(store, push(store, *"abcdef"))
    with database.begin() as connection:  # a claim that is not committed yet
        query = select(notifications.c.id).order_by(notifications.c.id).limit(3)
        held = connection.scalars(query.with_for_update()).all()
        found = claim(theirs)
        assert len(found) == 3
        assert not {one.id for one in found} & set(held)
    assert len(claim(mine)) == 3
    database.close()


def test_the_servers_clock_counts(shared_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = open_database(shared_url)
    store, outbox = Store(database), Outbox(database)
    store.routes = (route("t"),)
    monkeypatch.setattr("time.time", lambda: 5.0)  # this machine's is wrong
    finish(store, push(store, "a"))
    assert (outbox.backlog("t").oldest or 0) > 1_700_000_000
    assert named(claim(outbox)) == ["a"]
    database.close()
