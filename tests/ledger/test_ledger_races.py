"""Exporters that share a ledger, and do things to the same calls at the same time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import pytest
from sqlalchemy import Connection, text

from exporter.ledger.calls import prune_finished
from exporter.ledger.engine import Database
from exporter.ledger.store import Store
from exporter.ledger.totals import TotalKind
from exporter.ledger.types import NewCall, StoredCall
from tests.ledger.racing import shuffled, together
from tests.ledger.test_ledger_store import BUSY, NOW, finish, ids, new, observed, pay, push, rows
from tests.waiting import DEADLINE

R = TypeVar("R")
S = TypeVar("S")

EXPORTERS = 3
ROUNDS = 20


@pytest.fixture
def stores(shared: Callable[[], Database]) -> list[Store]:
    """Exporters that share a ledger."""
    stores = [Store(shared()) for _ in range(EXPORTERS)]
    for number, store in enumerate(stores, 1):
        for account in ("main", "other"):  # each believes that it holds the leases
            store.set_epoch(account, number)
    return stores


def calls_counted(store: Store) -> float:
    return sum(
        v
        for c, v in store.database.run(store.snapshot).totals.items()
        if c.total is TotalKind.CALLS
    )


def known(store: Store) -> list[str]:
    with store.database.begin() as connection:
        query = text("SELECT reference_id FROM calls ORDER BY reference_id")
        return [str(name) for name in connection.scalars(query)]


def names(first: int, number: int) -> list[NewCall]:
    return [new(f"c{n:05}", {"n": str(n % 5)}) for n in range(first, first + number)]


@pytest.mark.parametrize("source", [None, "file:a"])
def test_a_call_that_several_take_in_is_one(stores: list[Store], source: str | None) -> None:
    for number in range(ROUNDS):
        wanted = names(number * 10, 10)
        taken = together(
            *(partial(s.watch, source, shuffled(wanted, n), NOW) for n, s in enumerate(stores))
        )
        added = [stored.call for one in taken for stored in one.added]
        assert sorted(call.reference_id for call in added) == [c.reference_id for c in wanted]
        assert len({call.id for call in added}) == len(wanted)
        # Each knows the rows of all, whoever added them.
        assert [one.rows for one in taken] == [{call.id for call in added}] * EXPORTERS
        # The labels of those that are added come with them.
        for one in taken:
            assert {stored.call.label_set for stored in one.added} <= one.label_sets.keys()
    assert known(stores[0]) == [call.reference_id for call in names(0, ROUNDS * 10)]
    assert len(stores[0].unfinished("main")) == ROUNDS * 10


def test_a_call_that_several_finish_counts_once(stores: list[Store]) -> None:
    for number in range(ROUNDS):
        stored = stores[0].watch(None, names(number * 30, 30), NOW).added
        groups = [[observed(call, BUSY) for call in shuffled(stored, n)[:25]] for n in range(3)]
        done = together(*(partial(s.commit, g) for s, g in zip(stores, groups, strict=True)))
        asked = {observation.call.id for group in groups for observation in group}
        assert sum(len(one.finished) for one in done) == len(asked)
        for one, group in zip(done, groups, strict=True):
            assert len(one.ignored) + len(one.finished) == len(group)
        left = [call for call in stored if call.call.id not in asked]
        finish(stores[0], *left)
    assert calls_counted(stores[0]) == ROUNDS * 30
    finished = "SELECT count(*) FROM calls WHERE result = 'success' AND finished_at IS NOT NULL"
    assert rows(stores[0], finished) == [(ROUNDS * 30,)]


def test_a_price_that_several_tell_counts_once(stores: list[Store]) -> None:
    for number in range(ROUNDS):
        (stored,) = stores[0].watch(None, names(number, 1), NOW).added
        together(
            partial(pay, stores[0], stored.call.id, 350.0),
            partial(pay, stores[1], stored.call.id, 350.0),
            partial(finish, stores[2], stored),
        )
    totals = stores[0].database.run(stores[0].snapshot).totals
    assert sum(v for c, v in totals.items() if c.total is TotalKind.PRICE) == 350.0 * ROUNDS


def hand_over(store: Store, source: str | None, wanted: list[NewCall]) -> list[StoredCall]:
    if source is None:
        return store.push([wanted], NOW).added
    return store.watch(source, wanted, NOW).added


def test_deleted_calls_that_several_want_again(stores: list[Store]) -> None:
    for number in range(ROUNDS):
        wanted = names(number * 5, 5)
        for stored in stores[0].watch(None, wanted, NOW).added:
            assert stores[0].delete(stored.call.id, NOW)
        sources = "file:a", "file:b", None
        taken = together(
            *(
                partial(hand_over, store, source, shuffled(wanted, number))
                for store, source in zip(stores, sources, strict=True)
            )
        )
        added = [stored.call.reference_id for one in taken for stored in one]
        assert sorted(added) == [call.reference_id for call in wanted]
    assert rows(stores[0], "SELECT count(*) FROM calls WHERE result IS NULL") == [(ROUNDS * 5,)]
    # Both files name them.
    assert rows(stores[0], "SELECT count(*) FROM call_sources") == [(ROUNDS * 10,)]


def test_a_call_that_several_delete_is_deleted_once(stores: list[Store]) -> None:
    for number in range(ROUNDS):
        (stored,) = stores[0].watch(None, names(number, 1), NOW).added
        deleted = together(*(partial(s.delete, stored.call.id, NOW) for s in stores))
        assert sum(deleted) == 1


def overtaken(
    store: Store, first: Callable[[Connection], R], second: Callable[[], S]
) -> tuple[R, S]:
    """Return the results of a transaction of a store, and of another one that waits for its end."""
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with ThreadPoolExecutor(1) as thread:
        with store.database.begin() as connection:
            result, other = first(connection), thread.submit(second)
            while not (connection.scalar(waiting) or other.done()):
                time.sleep(0.01)
        return result, other.result(DEADLINE)


def test_a_call_that_is_being_named_is_not_let_go(stores: list[Store]) -> None:
    (stored,) = stores[0].watch("file:a", [new("a")], NOW).added
    _, removed = overtaken(
        stores[1],
        lambda connection: stores[1].insert(connection, [[new("a")]], NOW, source="file:b"),
        lambda: stores[0].keep_only("file:a", set()),
    )
    assert removed == []
    assert known(stores[0]) == ["a"]
    assert rows(stores[0], "SELECT * FROM call_sources") == [("file:b", stored.call.id)]


def test_a_call_that_is_being_let_go_is_new_to_whoever_names_it(stores: list[Store]) -> None:
    (stored,) = stores[0].watch("file:a", [new("a")], NOW).added
    gone, taken = overtaken(
        stores[0],
        lambda connection: stores[0].remove_source(connection, "file:a", [stored.call.id], NOW),
        lambda: stores[1].watch("file:b", [new("A"), new("b")], NOW + 9),
    )
    assert gone == {stored.call.id: "main"}
    assert sorted(ids(taken.added)) == ["A", "b"]
    assert taken.rows == {stored.call.id for stored in taken.added}
    assert known(stores[0]) == ["A", "b"]


def test_a_call_that_is_being_forgotten_is_new_to_whoever_pushes_it(stores: list[Store]) -> None:
    (stored,) = push(stores[0], new("a"))
    finish(stores[0], stored)
    _, pushed = overtaken(
        stores[0],
        lambda connection: connection.execute(text("DELETE FROM calls")).rowcount,
        lambda: stores[1].push([[new("A")]], NOW + 9_999),
    )
    # It was known when it was looked for; to be forgotten a moment later is no loss.
    assert pushed.added == [] or ids(pushed.added) == ["A"]


def test_everything_at_once(stores: list[Store]) -> None:
    """No order of locks leads into a circle: nothing is raised."""

    def work(store: Store, seed: int) -> int:
        rng, finished = random.Random(seed), 0
        for _ in range(40):
            wanted = [new(f"c{rng.randrange(200)}", {}, f"a{rng.randrange(3)}") for _ in range(30)]
            source = rng.choice([None, "file:a", "file:b"])
            taken = store.watch(source, wanted, NOW)
            pushed = store.push([wanted[:10]], NOW + rng.randrange(10_000))
            mine = [*taken.added, *pushed.added]
            finished += len(
                store.commit([observed(c, BUSY) for c in mine if rng.random() < 0.5]).finished
            )
            rows_of_all = shuffled(sorted(taken.rows), seed)
            for row in rows_of_all[:3]:
                pay(store, row, 1.0)
            if rows_of_all:
                store.delete(rows_of_all[0], NOW)
            if source:
                store.keep_only(source, taken.rows)
            store.database.run(prune_finished, NOW + 5)
        return finished

    finished = together(*(partial(work, store, n) for n, store in enumerate(stores)))
    assert calls_counted(stores[0]) == sum(finished)


@pytest.mark.parametrize("first", [0, 1])
def test_groups_in_another_order_wait_for_each_other(stores: list[Store], first: int) -> None:
    a, b = push(stores[0], new("a"), new("b"))
    groups = [[observed(a, BUSY), observed(b, BUSY)], [observed(b, BUSY), observed(a, BUSY)]]
    committed, other = overtaken(
        stores[0],
        lambda connection: stores[0].write(connection, groups[first]),
        lambda: stores[1].commit(groups[1 - first]),
    )
    assert len(committed.finished) == 2
    assert other.ignored == {a.call.id, b.call.id}


def test_what_is_inserted_meanwhile_is_waited_for(stores: list[Store]) -> None:
    mine, other = overtaken(
        stores[0],
        lambda connection: stores[0].insert(connection, [[new("a"), new("b")]], NOW),
        lambda: stores[1].push([[new("B"), new("c")]], NOW),
    )
    assert ids(mine.added) == ["a", "b"]
    assert ids(other.added) == ["c"]
