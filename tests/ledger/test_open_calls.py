"""`watch.max_calls`: each account has its own room, whoever fills it."""

from __future__ import annotations

from collections.abc import Callable

from exporter.ledger.engine import Database
from exporter.ledger.store import Store, StoreSettings
from exporter.ledger.types import NewCall
from tests.ledger.test_ledger_store import NOW, finish, new, push


def calls(prefix: str, count: int, account: str = "main") -> list[NewCall]:
    return [new(f"{prefix}{n}", account=account) for n in range(count)]


def test_a_request_is_refused_by_the_account_that_is_full(store: Store) -> None:
    store.configure(StoreSettings(max_calls=3))
    push(store, *calls("a", 3, "revoked"))
    requests = [
        [*calls("b", 2), new("x", account="revoked")],
        calls("c", 2),
        calls("d", 2),
        [*calls("a", 3, "revoked"), *calls("e", 1)],  # those of the full one are known
        calls("f", 1, "third"),
    ]
    counts = store.push(requests, NOW).counts
    assert counts == ["revoked", (2, 0), "main", (1, 3), (1, 0)]


def test_what_ends_leaves_its_room(store: Store) -> None:
    def refused(name: str, account: str = "main") -> int:
        return store.watch(None, [new(name, account=account)], NOW).refused.total()

    store.configure(StoreSettings(max_calls=3))
    a, _, _ = push(store, *calls("a", 3))
    (b,) = store.watch("file", [*calls("b", 1, "b")], NOW).added
    push(store, *calls("c", 2, "b"))
    assert refused("x") == refused("x", "b") == 1
    finish(store, a)
    assert refused("x") == 0
    assert refused("y") == refused("x", "b") == 1
    assert store.keep_only("file", set()) == [b.call.id]
    assert refused("x", "b") == 0
    (x,) = (stored for stored in store.unfinished("b") if stored.call.reference_id == "x")
    assert refused("y") == refused("y", "b") == 1
    assert store.delete(x.call.id, NOW)
    assert not store.delete(x.call.id, NOW)
    assert refused("y") == 1
    assert refused("y", "b") == 0
    # And so it is after a start.
    again = Store(store.database)
    again.configure(StoreSettings(max_calls=3))
    for account in ("main", "b"):
        assert again.watch(None, calls("z", 1, account), NOW).refused == {account: 1}


def test_what_other_exporters_insert_takes_room_at_once(
    shared: Callable[[], Database],
) -> None:
    a, b = Store(shared()), Store(shared())
    for store in (a, b):
        store.configure(StoreSettings(max_calls=3))
    push(a, *calls("a", 2))
    assert b.push([calls("b", 2)], NOW).counts == ["main"]
    assert b.push([calls("b", 1)], NOW).counts == [(1, 0)]
    assert a.push([calls("c", 1), calls("c", 1, "other")], NOW).counts == ["main", (1, 0)]
    # What was counted once is not counted again.
    b.configure(StoreSettings(max_calls=9))
    for n in range(3):
        assert b.push([calls(f"d{n}", 1), calls(f"d{n}", 1, "third")], NOW).counts == [(1, 0)] * 2
    assert b.push([calls("e", 3)], NOW).counts == [(3, 0)]
    assert b.push([calls("f", 1)], NOW).counts == ["main"]
    # What they finish is seen when it is counted anew.
    finish(a, *(one for one in a.unfinished("main") if one.call.reference_id.startswith("a")))
    b.database.run(b.recount)
    assert b.push([calls("f", 2), calls("f", 1, "third")], NOW).counts == [(2, 0), (1, 0)]
    assert b.push([calls("g", 1)], NOW).counts == ["main"]
