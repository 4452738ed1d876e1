"""Leases: who may poll an account, which calls it claims, and what it learns of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

from exporter.ledger import leases
from exporter.ledger.calls import finished_calls
from exporter.ledger.engine import Database
from exporter.ledger.labels import LabelLimits
from exporter.ledger.leases import (
    FORGET,
    POLL_NOW,
    TOTALS,
    Leases,
    Notice,
    Peer,
    notify_holders,
)
from exporter.ledger.store import Store, StoreSettings
from exporter.ledger.totals import TotalKind
from exporter.ledger.types import BATCH_SIZE, StoredCall
from tests.ledger.racing import together
from tests.ledger.test_ledger_store import BUSY, NOW, finish, ids, new, observed, pay, push, rows

R = TypeVar("R")

ACCOUNTS = ("main", "b")


class Exporter:
    """One of those that share a ledger."""

    def __init__(self, database: Database) -> None:
        self.store = Store(database)
        self.id = self.store.exporter or ""
        database.run(leases.add_leases, ACCOUNTS)
        self.heard: list[int] = []

    def take(self, *names: str, time: float = 60.0) -> dict[str, int]:
        taken = self.run(leases.take_leases, names or ACCOUNTS, time)
        for account, epoch in taken.items():
            self.store.set_epoch(account, epoch)
        return taken

    def run(self, statements: Callable[..., R], *args: object) -> R:
        return self.store.database.run(statements, self.id, *args)

    def read(self) -> Leases:
        return self.store.database.run(leases.read_leases)

    def leave(self) -> None:
        self.run(leases.release_leases)

    def look(self) -> tuple[list[StoredCall], list[Notice]]:
        claimed, notices = self.run(leases.claim_and_read_notices, self.store.epochs, self.heard)
        self.heard = [notice.id for notice in notices]
        return claimed, notices

    def notices(self) -> list[tuple[str, int | None, str]]:
        return [notice[1:] for notice in self.look()[1]]

    def claimed(self) -> list[str]:
        return ids(self.look()[0])


@pytest.fixture
def pair(shared: Callable[[], Database]) -> tuple[Exporter, Exporter]:
    return Exporter(shared()), Exporter(shared())


def test_a_lease_is_held_by_one_until_it_expires_or_is_given_up(
    pair: tuple[Exporter, Exporter],
) -> None:
    a, b = pair
    a.run(leases.renew_leases, "a:1", ACCOUNTS, (), 60)
    assert a.take("main") == {"main": 1}
    assert b.take() == {"b": 1}
    known = b.read()
    assert {name: (*lease[:2], lease.overdue > 0) for name, lease in known.leases.items()} == {
        "main": (a.id, 1, False),
        "b": (b.id, 1, False),
    }
    assert known.exporters == {a.id: Peer("a:1", frozenset(ACCOUNTS))}
    a.run(leases.give_up_leases, ["main", "b"])
    assert b.take("main") == {"main": 2}
    assert a.take() == {}
    # Its own it may take again, in a new epoch; and an expired one is for anybody.
    assert b.take("main", time=-1) == {"main": 3}
    assert a.read().leases["main"].overdue > 0
    assert a.take() == {"main": 4}
    b.run(leases.renew_leases, "b:1", (), ACCOUNTS, 60)
    assert a.read().leases["main"].holder == a.id
    a.leave()
    known = b.read()
    assert known.leases["main"][:2] == (None, 4)
    assert known.exporters == {b.id: Peer("b:1", frozenset())}


def test_one_of_many_takes_a_lease(shared: Callable[[], Database]) -> None:
    exporters = [Exporter(shared()) for _ in range(4)]
    for epoch in range(1, 6):
        taken = together(*(exporter.take for exporter in exporters))
        assert sorted(name for names in taken for name in names) == ["b", "main"]
        assert {number for names in taken for number in names.values()} == {epoch}
        for exporter in exporters:
            exporter.leave()


def test_open_calls_are_claimed_once_in_each_epoch(pair: tuple[Exporter, Exporter]) -> None:
    a, b = pair
    push(b.store, new("before"), new("other", account="b"))
    assert a.claimed() == []
    a.take("main")
    assert (a.claimed(), a.claimed()) == (["before"], [])
    # What the holder adds it polls without a claim, unlike what others add.
    assert ids(push(a.store, new("mine"))) == ["mine"]
    push(b.store, new("theirs"))
    assert (a.claimed(), a.claimed()) == (["theirs"], [])
    (before,) = (one for one in a.store.unfinished("main") if ids([one]) == ["before"])
    finish(a.store, before)
    assert ids(a.store.unfinished("main")) == ["mine", "theirs"]
    # Another one takes the lease: all are claimed, whatever the first still does.
    a.run(leases.give_up_leases, ["main"])
    b.take("main")
    push(a.store, new("late"))
    assert sorted(b.claimed()) == ["late", "mine", "theirs"]
    assert (a.claimed(), b.claimed()) == ([], [])


def test_calls_are_not_claimed_for_a_lease_that_was_taken_again(
    pair: tuple[Exporter, Exporter],
) -> None:
    """An exporter that stood still longer than its lease does not poll the account yet."""
    a, _ = pair
    before = a.take()
    a.store.watch("file", [new("a")], NOW)
    a.take("main")
    assert a.run(leases.claim_and_read_notices, before, [])[0] == []
    assert a.claimed() == ["a"]


def test_many_calls_are_claimed_in_batches(pair: tuple[Exporter, Exporter]) -> None:
    a, b = pair
    for account in ACCOUNTS:
        for start in range(0, 3 * BATCH_SIZE // 2, BATCH_SIZE // 2):
            wanted = [new(f"c{start + n}", account=account) for n in range(BATCH_SIZE // 2)]
            push(b.store, *wanted)
    a.take()
    assert [len(a.claimed()) for _ in range(4)] == [BATCH_SIZE, BATCH_SIZE, BATCH_SIZE, 0]


def test_the_holder_is_told_what_others_do_until_it_says_so(
    pair: tuple[Exporter, Exporter],
) -> None:
    a, b = pair
    a.take("main")
    calls = {name: push(a.store, new(name))[0] for name in ("deleted", "hinted", "done", "priced")}
    a.store.watch("file", [new("named")], NOW)
    row = {name: call.call.id for name, call in calls.items()}
    (named,) = (call for call in a.store.unfinished("main") if call.call.reference_id == "named")
    a.notices()
    b.store.delete(row["deleted"], NOW)
    b.store.database.run(notify_holders, b.id, [row["hinted"]], POLL_NOW)
    b.store.keep_only("file", set())
    told = [
        ("main", row["deleted"], FORGET),
        ("main", row["hinted"], POLL_NOW),
        ("main", named.call.id, FORGET),
    ]
    again = a.run(leases.claim_and_read_notices, a.store.epochs, [])  # nothing was acknowledged
    assert again[1][0][1:] == told[0]
    assert a.notices() == told
    assert a.notices() == []
    b.store.commit([observed(calls["done"], BUSY)])
    look = a.look()
    assert [notice[1:] for notice in look[1]] == [
        ("main", None, TOTALS),
        ("main", row["done"], FORGET),
    ]
    finished = a.store.database.run(finished_calls, {row["done"], row["hinted"]})
    assert {r: ended.reference_id for r, ended in finished.items()} == {row["done"]: "done"}
    pay(b.store, row["done"], 350.0)
    b.store.configure(StoreSettings(LabelLimits(("campaign",), 1, 9)))
    push(b.store, new("labelled", {"campaign": "otp"}))
    assert a.notices() == [("main", None, TOTALS)] * 2
    assert a.notices() == []
    # Of what it does itself it is not told, nor anybody of an account that nobody polls.
    a.store.delete(row["hinted"], NOW)
    finish(a.store, calls["priced"])
    a.leave()
    b.store.delete(row["priced"], NOW)
    push(b.store, new("more", {"campaign": "reminder"}))
    assert rows(a.store, "SELECT * FROM notices") == []


def test_whoever_takes_a_lease_sees_or_is_told_of_every_total(
    shared: Callable[[], Database],
) -> None:
    """The one that held it commits at any moment, before and after it is taken."""
    a, b = Exporter(shared()), Exporter(shared())
    shown = 0.0
    for number in range(20):
        holder, other = (a, b) if number % 2 else (b, a)
        calls = push(other.store, *(new(f"c{number}-{n}") for n in range(5)))
        other.leave()

        def commit(other: Exporter = other, calls: list[object] = calls) -> float:  # type: ignore[assignment]
            for call in calls:
                finish(other.store, call)  # type: ignore[arg-type]
            return 0.0

        def take(holder: Exporter = holder) -> float:
            holder.take("main")
            totals = holder.store.database.run(holder.store.snapshot, ["main"]).totals
            return sum(value for cell, value in totals.items() if cell.total is TotalKind.CALLS)

        _, shown = together(commit, take)
        complete = shown == 5 * (number + 1)
        assert complete or ("main", None, TOTALS) in holder.notices()
