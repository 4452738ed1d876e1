from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from sqlalchemy import event

from exporter.calls import CallState, Finished, PollAgain, Result, Status, reference_id
from exporter.ledger.engine import Database, open_database
from exporter.ledger.records import NewCall, Observation
from exporter.ledger.store import Store

NOW = 1_760_000_000.0
ACCOUNTS = ("main", "b", "c")


@pytest.fixture
def listed(store: Store) -> Store:
    fill(store)
    return store


def fill(store: Store) -> None:
    """Take calls of three accounts in, of every kind of each, one after the other."""
    calls = [NewCall(ACCOUNTS[n % 3], reference_id(f"c{n}"), {}) for n in range(24)]
    stored = store.push([calls], NOW).added
    states = PollAgain(CallState.QUEUED), Finished(Result.SUCCESS, Status.BUSY)
    store.commit([Observation(c.account, c.call, states[n % 2], NOW) for n, c in enumerate(stored)])
    for call in stored[12:18:2]:
        store.delete(call.call.id, NOW)


@pytest.mark.parametrize(
    ("names", "state", "result", "after", "expected"),
    [
        (["main"], None, None, 0, [0, 3, 6, 9, 15, 18, 21]),
        (["b", "main"], None, None, 0, [0, 1, 3, 4, 6, 7, 9, 10, 13, 15, 18, 19, 21, 22]),
        (["main", "nobody"], None, None, 7, [9, 15, 18, 21]),
        (["main"], "queued", None, 0, [0, 6, 18]),
        (["main"], "queued", None, 1, [6, 18]),
        (["main", "c"], "queued", None, 0, [0, 2, 6, 8, 18, 20]),
        (["main"], "finished", None, 0, [3, 9, 15, 21]),
        (["main"], None, "success", 4, [9, 15, 21]),
        (["main"], "queued", "success", 0, []),
        (["main"], "new", None, 0, []),
        (["nobody"], None, None, 0, []),
        ([], None, None, 0, []),
    ],
)
def test_pages(
    listed: Store,
    names: list[str],
    state: str | None,
    result: str | None,
    after: int,
    expected: list[int],
) -> None:
    found = [record.reference_id for record in listed.page(names, state, result, after)]
    assert found == [f"c{number}" for number in expected]
    shorter = listed.page(names, state, result, after, limit=2)
    assert [record.reference_id for record in shorter] == found[:2]


def test_a_page_of_a_file_reads_calls_in_their_order_and_sorts_none(path: Path) -> None:
    database = open_database(f"sqlite:///{path}")
    engine, store = database.engine, Store(database)
    fill(store)
    ran: list[tuple[str, tuple[object, ...]]] = []
    event.listen(
        engine,
        "before_cursor_execute",
        lambda _c, _r, sql, parameters, *_: ran.append((sql, parameters)),
    )
    for names, state, result in product(
        (["main"], ["main", "b"]), (None, "new", "finished"), (None, "success")
    ):
        ran.clear()
        store.page(names, state, result, 1, 100)
        sql, parameters = next(one for one in ran if "label_sets" in one[0])
        with engine.connect() as connection:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", parameters)
            steps = [step[-1] for step in plan]
        assert not [step for step in steps if "TEMP B-TREE" in step or "SCAN" in step], steps
        (of_calls,) = [step for step in steps if "calls" in step]
        if len(names) == 1 and state == "new":
            expected = "INDEX calls_unfinished (account_id=? AND id>?)"
        else:
            expected = "INTEGER PRIMARY KEY (rowid>?)"
        assert of_calls == f"SEARCH calls USING {expected}"
    database.close()


def test_a_page_of_a_shared_ledger_reads_calls_in_their_order(
    shared: Callable[[], Database],
) -> None:
    database = shared()
    store = Store(database)
    fill(store)
    ran: list[tuple[str, dict[str, object]]] = []
    event.listen(
        database.engine,
        "before_cursor_execute",
        lambda _c, _r, sql, parameters, *_: ran.append((sql, parameters)),
    )
    for names, state, result in product(
        (["main"], ["main", "b"]), (None, "finished"), (None, "success")
    ):
        ran.clear()
        store.page(names, state, result, 1, 100)
        before = [sql for sql, _ in ran if sql.startswith("SET LOCAL enable")]
        sql, parameters = next(one for one in ran if "label_sets" in one[0])
        with database.begin() as connection:
            for setting in before:
                connection.exec_driver_sql(setting)
            plan = connection.exec_driver_sql(f"EXPLAIN {sql}", parameters).scalars().all()
        steps = "\n".join(plan)
        assert "Sort" not in steps
        assert "Index Scan using calls_pkey on calls" in steps
