from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest

from exporter.calls import (
    CallState,
    Finished,
    Key,
    PollAgain,
    ReferenceId,
    Result,
    Status,
    WatchedCall,
)
from exporter.ledger.engine import Database
from exporter.ledger.records import CHUNK, Labels, NewCall, Observation, StoredCall
from exporter.ledger.store import Store
from exporter.ledger.totals import SUM, Cell, Total

NOW = 1_760_000_000.0
OTP = {"campaign": "otp"}
ANSWERED = Finished(Result.SUCCESS, Status.ANSWERED, 13.0, Key.ONE)
BUSY = Finished(Result.SUCCESS, Status.BUSY)


def new(reference_id: str, labels: Labels | None = None, account: str = "main") -> NewCall:
    return NewCall(account, ReferenceId(reference_id), labels or {})


def push(store: Store, *calls: NewCall, now: float = NOW) -> list[StoredCall]:
    return store.watch(None, calls, now)[0]


def observed(
    stored: StoredCall, verdict: Finished | PollAgain, after: float = 5.0
) -> Observation:
    return Observation(stored.account, stored.call, verdict, NOW + after)


def finish(store: Store, *calls: StoredCall, verdict: Finished = BUSY, after: float = 5.0) -> None:
    store.commit([observed(call, verdict, after) for call in calls])


def ids(calls: Iterable[StoredCall]) -> list[str]:
    return [stored.call.reference_id for stored in calls]


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def test_a_new_call_is_stored_as_it_came(store: Store, path: Path) -> None:
    (stored,) = push(store, new("Ab-1", OTP))
    assert stored.account == "main"
    assert store.label_sets() == {stored.labels: OTP}
    call = stored.call
    assert (call.reference_id, call.first_watched, call.state) == ("Ab-1", NOW, CallState.NEW)
    (again,) = store.unfinished("main")
    assert again[:2] == stored[:2]
    assert isinstance(again.call, WatchedCall)
    for name in ("id", "reference_id", "first_watched", "state", "state_since"):
        assert getattr(again.call, name) == getattr(call, name)
    assert rows(path, "SELECT reference_key, pushed, result FROM calls") == [("ab-1", 1, None)]


@pytest.mark.parametrize("source", [None, "config"])
def test_a_call_is_watched_once(store: Store, source: str | None) -> None:
    first, held = store.watch(source, [new("Ab"), new("aB"), new(" AB "), new("x")], NOW)
    assert [call.reference_key for call in map(Key2, first)] == ["ab", "x"]
    again, held_again = store.watch(source, [new("AB"), new("y")], NOW + 9)
    assert ids(again) == ["y"]
    assert held_again - held == {again[0].call.id}
    for other in ("other file", None):
        assert store.watch(other, [new("ab"), new("Y")], NOW + 9)[0] == []
    assert [(c.call.reference_id.strip().lower(), c.call.first_watched) for c in unfinished(store)]
