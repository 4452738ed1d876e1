from __future__ import annotations

from exporter.calls import Finished, Result, Status
from exporter.ledger.calls import recent_calls
from exporter.ledger.store import Store
from exporter.ledger.types import FinishedCall
from tests.ledger.test_ledger_store import NOW, finish, new, push

FAILED = Finished(Result.FAILURE, Status.FAILED)


def test_what_finished_lately(store: Store) -> None:
    old, first, last, deleted, _ = push(
        store, new("old"), new("First"), new("last", account="b"), new("deleted"), new("open")
    )
    finish(store, old, after=10)
    finish(store, last, verdict=FAILED, after=30)
    finish(store, first, after=20)
    store.delete(deleted.call.id, NOW + 25)
    past = store.database.run(recent_calls, NOW + 15)
    assert past == (
        [
            FinishedCall("main", "First", Result.SUCCESS, Status.BUSY, NOW, NOW + 20),
            FinishedCall("b", "last", Result.FAILURE, Status.FAILED, NOW, NOW + 30),
        ],
        NOW + 15,
    )


def test_no_more_than_asked_for(store: Store) -> None:
    calls = push(store, *(new(f"id-{number}") for number in range(5)))
    for number, call in enumerate(calls):
        finish(store, call, after=number)
    with store.database.begin() as connection:
        past = recent_calls(connection, NOW, limit=3)
    # They are all since the oldest of them: there may be others before it.
    assert [call.finished_at for call in past.calls] == [NOW + 2, NOW + 3, NOW + 4]
    assert past.since == NOW + 2
