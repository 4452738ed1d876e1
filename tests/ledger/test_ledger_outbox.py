"""Notifications: written with the finish, and claimed by one exporter at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from sqlalchemy import delete, select, text

from exporter.calls import CallState, Finished, PollAgain, Result, Status
from exporter.errors import LedgerError
from exporter.ids import ReferenceId
from exporter.ledger.clock import LedgerClock
from exporter.ledger.engine import Database
from exporter.ledger.history import call_history
from exporter.ledger.notifications import (
    NotificationRecord,
    drop_notifications,
    list_notifications,
    newest_given_up,
    prune_given_up,
    retry_notifications,
)
from exporter.ledger.outbox import LONGEST_WAIT, Claim, DeliveryResult, Notification, Route
from exporter.ledger.outbox import DeliveryAction as Action
from exporter.ledger.schema import calls, notifications
from exporter.ledger.store import Store, StoreSettings
from exporter.ledger.types import BATCH_SIZE, FinishedCall, NewCall, Observation, StoredCall
from tests.ledger.machine import Machine
from tests.waiting import DEADLINE

BUSY = Finished(Result.SUCCESS, Status.BUSY)
FAILED = Finished(Result.FAILURE, Status.FAILED)
DAY = 86_400.0


def route(target: str, results: tuple[str, ...] | None = None, **labels: str) -> Route:
    wanted = {name: {value} for name, value in labels.items()}
    return Route(target, DAY, None, results, None, wanted)


class Box:
    """The statements of a store's outbox, each run in a transaction."""

    def __init__(self, store: Store, clock: LedgerClock) -> None:
        self.database, self.outbox, self.clock = store.database, store.outbox, clock
        self.set_routes = store.outbox.set_routes
        self.set_routes([route("t")])

    def __getattr__(self, name: str) -> Any:  # Any: what the statement returns
        return partial(self.database.run, getattr(self.outbox, name))


@pytest.fixture
def outbox(store: Store, clock: LedgerClock) -> Box:
    return Box(store, clock)


def push(store: Store, *names: str, account: str = "main", **labels: str) -> list[StoredCall]:
    return store.watch(None, [NewCall(account, ReferenceId(name), labels) for name in names], 1.0)[
        0
    ]


def finish(store: Store, stored: list[StoredCall], verdict: Finished = BUSY) -> frozenset[str]:
    committed = store.commit([Observation(one.account, one.call, verdict, 5.0) for one in stored])
    return committed.notify


BOTH = [Claim(retry, 99, 99) for retry in (False, True)]
"""Claim new ones, and those that were refused before."""


def claim(
    outbox: Box, most: int = 10, results: Sequence[DeliveryResult] = (), target: str = "t"
) -> list[Notification]:
    found: list[Notification] = outbox.claim(target, results, BOTH, most, 60.0).claimed
    return found


def record(outbox: Box, *results: DeliveryResult) -> tuple[int, int]:
    result = outbox.claim("t", results)
    return result.delivered, result.gave_up


def put_off(one: Notification, wait: float) -> DeliveryResult:
    return DeliveryResult(one, Action.RETRY, wait)


def named(found: list[Notification]) -> list[str]:
    return [one.call.reference_id for one in found]


def test_without_targets_nothing_is_written(
    statements: list[str], store: Store, outbox: Box
) -> None:
    outbox.set_routes([])
    finish(store, push(store, "a"))
    assert not [text for text in statements if "notifications" in text]


def test_a_finish_and_what_is_told_of_it_are_one(store: Store, outbox: Box) -> None:
    assert finish(store, push(store, "a", "B", campaign="otp")) == {"t"}
    found = claim(outbox)
    assert named(found) == ["a", "B"]
    labels = {"campaign": "otp"}
    assert found[0].call == FinishedCall(
        "main", "a", "success", "busy", None, None, labels, 1.0, 5.0
    )


def test_neither_is_written_where_the_other_cannot_be(
    database: Database, store: Store, outbox: Box
) -> None:
    class Broken(Route):
        def matches(self, call: FinishedCall) -> bool:
            raise LedgerError("it breaks after the finish")

    stored = push(store, "a")
    outbox.set_routes([Broken("t", DAY)])
    with pytest.raises(LedgerError):
        finish(store, stored)
    with database.begin() as connection:
        assert connection.scalars(select(calls.c.result)).all() == [None]
        assert connection.scalars(select(notifications.c.id)).all() == []
    outbox.set_routes([route("t")])
    finish(store, stored)
    assert named(claim(outbox)) == ["a"]


@pytest.mark.parametrize(
    ("accounts", "results", "statuses", "labels", "matches"),
    [
        (None, None, None, {}, True),
        (("main", "b"), None, None, {}, True),
        (("b",), None, None, {}, False),
        (None, ("success",), None, {}, True),
        (None, ("failure", "unknown"), None, {}, False),
        (None, None, ("busy", "failed"), {}, True),
        (None, None, ("failed",), {}, False),
        (None, None, None, {"campaign": {"otp", "x"}}, True),
        (None, None, None, {"campaign": {"otp"}, "team": {"b"}}, False),
        (None, None, None, {"absent": {""}}, True),
        (None, None, None, {"absent": {"x"}}, False),
        (("main",), ("success",), ("busy",), {"team": {"a"}}, True),
        (("main",), ("success",), ("busy",), {"team": {"b"}}, False),
    ],
)
def test_a_call_has_to_match_everything_that_a_route_names(
    accounts: Collection[str] | None,
    results: Collection[str] | None,
    statuses: Collection[str] | None,
    labels: Mapping[str, Collection[str]],
    matches: bool,  # noqa: FBT001 - a column of a table
) -> None:
    of_call = {"campaign": "otp", "team": "a"}
    call = FinishedCall("main", "a", "success", "busy", None, None, of_call, 1.0, 5.0)
    assert Route("t", 1.0, accounts, results, statuses, labels).matches(call) is matches


def test_only_what_counts_is_told(store: Store, outbox: Box) -> None:
    stored = push(store, "twice", "deleted", "goes-on")
    store.delete(stored[1].call.id, 2.0)
    finish(store, stored[:2])
    assert finish(store, stored[:2], FAILED) == frozenset()
    store.commit([Observation("main", stored[2].call, PollAgain(CallState.QUEUED), 5.0)])
    (found,) = claim(outbox)
    assert named([found]) == ["twice"]
    assert found.call.result == "success"


def test_each_target_is_told_what_it_wants(store: Store, outbox: Box) -> None:
    outbox.set_routes([route("all"), route("bad", ("failure",)), route("otp", campaign="otp")])
    assert finish(store, push(store, "a")) == {"all"}
    assert finish(store, push(store, "b", campaign="otp"), FAILED) == {"all", "bad", "otp"}
    found = {target: named(claim(outbox, target=target)) for target in ("all", "bad", "otp")}
    assert found == {"all": ["a", "b"], "bad": ["b"], "otp": ["b"]}


def test_what_is_claimed_is_nobody_elses_until_the_claim_ends(
    store: Store, outbox: Box, machine: Machine
) -> None:
    finish(store, push(store, "a", "b", "c"))
    assert named(claim(outbox, 2)) == ["a", "b"]
    assert named(claim(outbox)) == ["c"]
    assert outbox.claim("t", [], BOTH, 1, 60.0).due_in == 60
    machine.pass_time(61)
    again = claim(outbox)
    assert [(one.attempts, *named([one])) for one in again] == [(2, "a"), (2, "b"), (2, "c")]


@pytest.mark.parametrize(("action", "counted"), [(Action.DONE, (2, 0)), (Action.GIVE_UP, (0, 2))])
def test_what_is_done_with_is_counted_once(
    store: Store, outbox: Box, action: Action, counted: tuple[int, int]
) -> None:
    finish(store, push(store, "a", "b"))
    results = [DeliveryResult(one, action) for one in claim(outbox)]
    for expected in (counted, (0, 0)):  # as from another exporter, whose claim had ended
        assert outbox.claim("t", results, BOTH, 9, 60.0) == (*expected, [], None)


def test_what_failed_comes_again_later(store: Store, outbox: Box, machine: Machine) -> None:
    finish(store, push(store, "a", "b", "not tried"))
    a, b, not_tried = claim(outbox)
    released = DeliveryResult(not_tried, Action.RELEASE)
    results = [put_off(a, 5.0), put_off(b, 10.0), released]
    assert claim(outbox, results=results) == [not_tried]
    machine.pass_time(5)
    assert named(claim(outbox)) == ["a"]
    machine.pass_time(5)
    assert named(claim(outbox)) == ["b"]


def test_who_is_late_does_not_touch_a_newer_claim(
    store: Store, outbox: Box, machine: Machine
) -> None:
    finish(store, push(store, "a"))
    (late,) = claim(outbox)
    machine.pass_time(61)
    (newer,) = claim(outbox)
    for result in (put_off(late, 1.0), DeliveryResult(late, Action.RELEASE)):
        assert claim(outbox, results=[result]) == []
    machine.pass_time(2)
    assert claim(outbox) == []
    assert record(outbox, DeliveryResult(newer, Action.DONE))[0] == 1


def test_the_last_attempt_is_when_the_time_is_over(
    store: Store, outbox: Box, machine: Machine
) -> None:
    finish(store, push(store, "a"))
    (a,) = claim(outbox)
    machine.pass_time(DAY - 30)
    record(outbox, put_off(a, 900.0))
    machine.pass_time(30)
    (a,) = claim(outbox)
    assert record(outbox, put_off(a, 900.0))[1] == 1
    assert outbox.backlog("t") == (0, None)
    # An old one is tried before it is given up.
    finish(store, push(store, "b", "c"))
    machine.pass_time(2 * DAY)
    (b,) = claim(outbox, 1)
    assert record(outbox, put_off(b, 5.0))[1] == 1
    assert outbox.backlog("t")[0] == 1


def test_what_is_overdue_is_given_up_in_bulk_but_for_what_is_under_way(
    store: Store, outbox: Box, machine: Machine
) -> None:
    names = [f"c{number}" for number in range(BATCH_SIZE + 100)]
    finish(store, push(store, *names[:100]))
    machine.pass_time(DAY - 30)
    finish(store, push(store, *names[100:]))
    (first,) = claim(outbox, 1)
    assert outbox.give_up("t", 0.0, math.inf) == 0
    machine.pass_time(35)
    assert outbox.give_up("another", 0.0, math.inf) == 0
    assert outbox.give_up("t", 10.0, math.inf) == 0  # over for 5 s
    assert outbox.give_up("t", 0.0, 4.0) == 0
    assert outbox.give_up("t", 0.0, math.inf) == 99
    assert record(outbox, DeliveryResult(first, Action.DONE))[0] == 1
    machine.pass_time(DAY)
    assert [outbox.give_up("t", 30.0, math.inf) for _ in range(2)] == [BATCH_SIZE, 0]
    assert outbox.backlog("t") == (0, None)


def test_new_ones_are_not_among_those_that_were_refused(
    store: Store, outbox: Box, machine: Machine
) -> None:
    finish(store, push(store, "bad", "released"))
    bad, released = claim(outbox)
    record(outbox, put_off(bad, 5.0), DeliveryResult(released, Action.RELEASE))
    machine.pass_time(5)
    finish(store, push(store, "new"))

    def kind(*, retry: bool) -> list[str]:
        return named(outbox.claim("t", [], [Claim(retry, 9, 9)], 9).claimed)

    assert sorted(kind(retry=False)) == ["new", "released"]
    assert kind(retry=True) == ["bad"]
    # In the order in which they are asked for, up to the limit.
    step = outbox.claim("t", [], [Claim(True, 9, 9), Claim(False, 9, 9)], 2, 60.0)
    assert named(step.claimed)[0] == "bad"
    assert len(step.claimed) == 2


def test_accounts_share_what_is_claimed(store: Store, outbox: Box) -> None:
    finish(store, push(store, *(f"a{number}" for number in range(50)), account="a"))
    for account in "bcdef":
        finish(store, push(store, account, f"{account}{account}", account=account))
    assert {name[0] for name in named(claim(outbox, 6))} == set("abcdef")
    assert [one.call.account for one in claim(outbox, 6)][:6] == list("abcdef")
    assert {name[0] for name in named(claim(outbox, 5))} == {"a"}


def test_accounts_take_turns_where_few_are_claimed(store: Store, outbox: Box) -> None:
    for account in "abc":
        finish(store, push(store, *(f"{account}{number}" for number in range(3)), account=account))
    found = [named(claim(outbox, 2)) for _ in range(4)]
    assert [sorted(name[0] for name in names) for names in found] == [
        *(["a", "b"], ["a", "c"], ["b", "c"], ["a", "b"])
    ]
    # An account that has enough has no turn.
    assert outbox.claim("t", [], [Claim(False, 9, 9, ["c"])], 9, 60.0).claimed == []
    assert len(outbox.claim("t", [], [Claim(False, 9, 1)], 9, 0.0).claimed) == 1
    assert named(claim(outbox)) == ["c2"]


def test_a_clock_that_is_set_back_puts_nothing_off(
    store: Store, outbox: Box, machine: Machine
) -> None:
    finish(store, push(store, "a"))
    machine.pass_time(-(LONGEST_WAIT + 1))
    assert claim(outbox) == []
    outbox.backlog("t")
    assert named(claim(outbox)) == ["a"]


def test_the_next_start_sends_at_once_what_was_claimed(
    database: Database, store: Store, outbox: Box
) -> None:
    finish(store, push(store, "a"))
    claim(outbox)
    outbox.release_all()
    # Where others share the ledger, one of them may be at it.
    assert named(claim(outbox)) == ([] if database.shared else ["a"])


REFUSED = "http_error: the response has the status 500"


def listed(outbox: Box, **filters: Any) -> list[NotificationRecord]:
    with outbox.database.read() as connection:
        return list_notifications(connection, outbox.clock, **filters).records


@pytest.mark.parametrize("way", ["gone", "last attempt", "overdue", "removed"])
def test_what_is_given_up_is_kept_until_it_is_sent_again(
    store: Store, outbox: Box, machine: Machine, way: str
) -> None:
    def retry(*rows: int, target: str = "t") -> object:
        return outbox.database.run(retry_notifications, outbox.clock, rows, {target: DAY})

    finish(store, push(store, "a", "b", campaign="otp"))
    one, other = claim(outbox)
    record(outbox, DeliveryResult(other, Action.DONE))
    failed = DeliveryResult(one, Action.RETRY, 5.0, REFUSED)
    if way == "gone":
        assert record(outbox, failed._replace(action=Action.GIVE_UP)) == (0, 1)
    else:
        if way != "last attempt":
            assert record(outbox, failed) == (0, 0)
        machine.pass_time(DAY)
        if way == "last attempt":
            assert record(outbox, failed) == (0, 1)
        else:
            assert outbox.give_up_others(["t"]) == 0
            give_up = outbox.give_up_others if way == "removed" else outbox.give_up
            assert give_up(*([["u"]] if way == "removed" else ["t", 0.0, math.inf])) == 1
    kept = listed(outbox)
    assert kept == [(one.id, "t", "main", "a", "given_up", 1, REFUSED, None, machine.wall)]
    with outbox.database.read() as connection:
        assert newest_given_up(connection, outbox.clock, "t") == kept
        assert newest_given_up(connection, outbox.clock, "u") == []
    assert (claim(outbox), outbox.backlog("t")) == ([], (0, None))
    machine.pass_time(7)
    assert retry(one.id, target="u") == set()
    assert retry(one.id, 99) == {one.id}
    assert outbox.backlog("t") == (1, machine.wall)
    (pending,) = listed(outbox)
    assert pending[4:] == ("pending", 1, REFUSED, machine.wall, machine.wall + DAY)
    assert claim(outbox) == [one._replace(attempts=2, retry=True, answer=REFUSED)]
    assert record(outbox, DeliveryResult(one, Action.DONE)) == (1, 0)
    assert listed(outbox) == []


def test_what_is_being_sent_is_left_alone(store: Store, outbox: Box, machine: Machine) -> None:
    finish(store, push(store, *"abcd"))
    found = {one.id: one for one in claim(outbox)}
    rows = sent, put_off_, released, dropped = sorted(found)
    record(outbox, put_off(found[put_off_], 900.0), put_off(found[dropped], 900.0))
    record(outbox, DeliveryResult(found[released], Action.RELEASE))
    run, targets = outbox.database.run, {"t": DAY}
    assert run(drop_notifications, outbox.clock, [dropped, sent]) == {dropped}
    assert run(retry_notifications, outbox.clock, rows, targets) == {put_off_, released}
    assert {one.id for one in claim(outbox)} == {put_off_, released}
    assert run(retry_notifications, outbox.clock, rows, targets) == set()
    machine.pass_time(61)
    assert run(retry_notifications, outbox.clock, rows, targets) == {sent, put_off_, released}
    assert run(drop_notifications, outbox.clock, rows) == {sent, put_off_, released}
    assert record(outbox, DeliveryResult(found[sent], Action.DONE)) == (0, 0)
    assert listed(outbox) == []


def test_a_late_result_of_one_that_was_given_up(
    store: Store, outbox: Box, machine: Machine
) -> None:
    finish(store, push(store, "delivered", "failed"))
    delivered, failed = claim(outbox)
    machine.pass_time(DAY + 61)
    assert outbox.give_up("t", 0.0, math.inf) == 2
    assert record(outbox, DeliveryResult(delivered, Action.DONE)) == (1, 0)
    assert record(outbox, put_off(failed, 5.0)) == (0, 0)
    assert [one.reference_id for one in listed(outbox)] == ["failed"]


@pytest.mark.parametrize("history", [True, False])
def test_the_history_of_a_call_has_what_targets_answered(
    store: Store, outbox: Box, machine: Machine, *, history: bool
) -> None:
    store.configure(StoreSettings(history=history))
    (stored,) = push(store, "a")
    finish(store, [stored])
    began = machine.wall

    def fails(answer: str | None, action: Action = Action.RETRY) -> tuple[int, int]:
        (one,) = claim(outbox)
        machine.pass_time(5)
        return record(outbox, DeliveryResult(one, action, 0.0, answer))

    def events() -> list[tuple[object, ...]]:
        found = outbox.database.run(call_history, stored.call.id).events
        return [(at - began, *rest) for _, at, *rest in found if rest[1] in {"t", "u"}]

    for answer in ("timeout", "timeout", "tls", None, *["timeout", "tls"] * 50):
        fails(answer, Action.RETRY if answer else Action.RELEASE)
    (pending,) = listed(outbox)
    # Without an event: a script may do this every minute.
    outbox.database.run(
        retry_notifications, outbox.clock, [pending.id], {"t": DAY}, history=history
    )
    assert fails("gone", Action.GIVE_UP) == (0, 1)
    machine.pass_time(5)
    (kept,) = listed(outbox)
    outbox.database.run(retry_notifications, outbox.clock, [kept.id], {"t": DAY}, history=history)
    machine.pass_time(2 * DAY)
    assert outbox.give_up("t", 0.0, math.inf) == 1
    outbox.database.run(retry_notifications, outbox.clock, [kept.id], {"t": DAY}, history=history)
    assert fails(None, Action.DONE) == (1, 0)
    found = events()
    if not history:
        assert found == []
        return
    assert found[:3] == [
        (5.0, "failed", "t", "timeout"),
        (15.0, "failed", "t", "tls"),
        (25.0, "failed", "t", "timeout"),
    ]
    assert [event for _, event, *_ in found[3:-5]] == ["failed"] * 16
    assert found[-5:] == [
        (525.0, "gave_up", "t", "gone"),
        (530.0, "retried", "t", None),
        (530.0 + 2 * DAY, "gave_up", "t", "gone"),
        (530.0 + 2 * DAY, "retried", "t", None),
        (535.0 + 2 * DAY, "delivered", "t", None),
    ]
    # A call that is gone has no history.
    outbox.set_routes([route("u")])
    (other,) = push(store, "b")
    finish(store, [other])
    with outbox.database.begin() as connection:
        connection.execute(delete(calls).where(calls.c.id == other.call.id))
    (one,) = claim(outbox, target="u")
    assert outbox.claim("u", [DeliveryResult(one, Action.DONE)]).delivered == 1
    assert outbox.database.run(call_history, other.call.id).events == []


def test_a_listing_is_read_in_pages(store: Store, outbox: Box, machine: Machine) -> None:
    outbox.set_routes([route("t"), route("u")])
    for account in ("main", "b"):
        finish(store, push(store, *(f"{account}{number}" for number in range(3)), account=account))
        for target in ("t", "u"):
            record(outbox, DeliveryResult(claim(outbox, 1, target=target)[0], Action.GIVE_UP))
    filters: dict[str, Any]
    for filters, count in (
        ({}, 12),
        ({"state": "given_up"}, 4),
        ({"state": "pending", "target": "u"}, 4),
        ({"accounts": ["b"]}, 6),
        ({"accounts": ["b"], "target": "t", "state": "given_up"}, 1),
        ({"accounts": []}, 0),
        ({"target": "nothing"}, 0),
    ):
        whole = listed(outbox, **filters)
        assert len(whole) == count
        assert whole == sorted(whole)
        sizes: list[dict[str, Any]] = [{"limit": 1}, {"limit": 5}, {"examined": 2}]
        for size in (*sizes, {"limit": 2, "examined": 4}):
            found, pages = list[NotificationRecord](), 0
            after: int | None = 0
            while after is not None:
                with outbox.database.read() as connection:
                    page = list_notifications(
                        connection, outbox.clock, after=after, **filters, **size
                    )
                found += page.records
                after, pages = page.next, pages + 1
            assert found == whole
            assert pages <= 14


def test_given_up_ones_are_pruned(store: Store, outbox: Box, machine: Machine) -> None:
    finish(store, push(store, "old", "new"))
    for one in claim(outbox):
        record(outbox, DeliveryResult(one, Action.GIVE_UP))
        machine.pass_time(10)
    assert outbox.database.run(prune_given_up, machine.wall - 20) == 0
    assert outbox.database.run(prune_given_up, machine.wall - 10) == 1
    assert [one.reference_id for one in listed(outbox)] == ["new"]


def test_two_exporters_claim_different_ones(shared: Callable[[], Database]) -> None:
    store, clock = Store(shared()), LedgerClock()
    mine, theirs = Box(store, clock), Box(Store(shared()), clock)
    finish(store, push(store, *"abcdef"))
    with mine.database.begin() as connection:  # a claim that is not committed yet
        query = select(notifications.c.id).order_by(notifications.c.id).limit(3)
        held = connection.scalars(query.with_for_update()).all()
        found = claim(theirs)
        assert len(found) == 3
        assert not {one.id for one in found} & set(held)
    assert len(claim(mine)) == 3


def test_by_hand_one_waits_for_a_claim_of_another_exporter(
    shared: Callable[[], Database],
) -> None:
    store, clock, other = Store(shared()), LedgerClock(), shared()
    store.outbox.set_routes([route("t")])
    finish(store, push(store, "a", "b"))
    with ThreadPoolExecutor(2) as threads:
        with store.database.begin() as connection:  # a claim that is not committed yet
            (one,) = store.outbox.claim(connection, "t", [], BOTH, 1, 60.0).claimed
            _, free = sorted(record.id for record in list_notifications(connection, clock).records)
            changes = [
                threads.submit(other.run, retry_notifications, clock, [one.id, free], {"t": DAY}),
                threads.submit(other.run, drop_notifications, clock, [one.id]),
            ]
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            end = time.monotonic() + DEADLINE
            while connection.scalar(text(waiting)) < 2 and time.monotonic() < end:
                time.sleep(0.05)
        assert [change.result(DEADLINE) for change in changes] == [{free}, set()]
