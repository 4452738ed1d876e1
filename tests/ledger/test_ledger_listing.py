from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from itertools import product
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select, text, update

from exporter.calls import CallState, Finished, PollAgain, Result, Status
from exporter.errors import LedgerError
from exporter.ids import reference_id
from exporter.ledger.calls import (
    count_finished,
    find_call,
    finished_pages,
    list_calls,
    recent_calls,
)
from exporter.ledger.engine import Database, open_database
from exporter.ledger.schema import calls
from exporter.ledger.store import Store
from exporter.ledger.types import CallRecord, NewCall, Observation

NOW = 1_760_000_000.0
ACCOUNTS = ("main", "b", "c")


@contextmanager
def filled(request: pytest.FixtureRequest) -> Iterator[Database]:
    """Open a ledger on the engine of the fixture, with calls to be listed."""
    if request.param == "sqlite":
        folder = request.getfixturevalue("tmp_path_factory").mktemp("listed")
        place = nullcontext(f"sqlite:///{folder}/ledger.db")
    else:
        place = request.getfixturevalue("server").database()
    with place as url, closing(open_database(url)) as database:
        fill(Store(database))
        yield database


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def listed(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A ledger that tests only read."""
    with filled(request) as database:
        yield database


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def grown(request: pytest.FixtureRequest) -> Iterator[Database]:
    """The same, so large that the planner of PostgreSQL would rather not sort it."""
    with filled(request) as database:
        if database.shared:
            grow(database)
        yield database


def fill(store: Store) -> None:
    """Take calls of three accounts in, of every kind of each, one after the other."""
    new = [NewCall(ACCOUNTS[n % 3], reference_id(f"c{n}"), {}) for n in range(24)]
    # One after the other, because those of one request may be inserted in the order of their ids.
    stored = [stored for call in new for stored in store.push([[call]], NOW).added]
    states = PollAgain(CallState.QUEUED), Finished(Result.SUCCESS, Status.BUSY)
    store.commit([Observation(c.account, c.call, states[n % 2], NOW) for n, c in enumerate(stored)])
    for call in stored[12:18:2]:
        store.delete(call.call.id, NOW)


PAGES: list[tuple[list[str], str | None, str | None, int, list[int]]] = [
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
]


def test_pages(listed: Database) -> None:
    for names, state, result, after, expected in PAGES:
        found = list_calls(listed, names, state, result, after)
        assert [record.reference_id for record in found.records] == [f"c{n}" for n in expected]
        assert found.next is None
        shorter = list_calls(listed, names, state, result, after, limit=2)
        assert shorter.records == found.records[:2]
        assert shorter.next == (shorter.records[-1].id if len(expected) > 1 else None)


def test_pages_that_look_at_few_rows_lead_to_the_end(listed: Database) -> None:
    for names, state, (limit, examined) in product(
        (["main"], ["b", "c", "main"], ["nobody", "c"]),
        (None, "watched", "queued", "new", "finished"),
        ((1, 5), (3, 1), (100, 2)),
    ):
        found: list[CallRecord] = []
        after: int | None = 0
        while after is not None:
            part = list_calls(listed, names, state, None, after, limit, examined=examined)
            assert len(part.records) <= limit
            assert part.next is None or part.next > after
            found += part.records
            after = part.next
        assert found == list_calls(listed, names, state).records


def test_a_page_is_read_while_the_ledger_is_written(database: Database) -> None:
    store = Store(database)
    fill(store)
    with database.begin() as connection:
        connection.execute(update(calls).values(state="new"))
        assert len(list_calls(database, ["main"], "queued").records) == 3
    assert list_calls(database, ["main"], "queued").records == []


def test_all_queries_of_a_reading_see_the_same_ledger(database: Database) -> None:
    fill(Store(database))
    new = select(func.count()).where(calls.c.state == "new")
    with database.read() as connection:
        before = connection.scalar(new)
        with database.begin() as other:
            other.execute(update(calls).values(state="new"))
        assert connection.scalar(new) == before


def test_reading_writes_nothing_and_takes_bounded_time(database: Database) -> None:
    with pytest.raises(LedgerError), database.read() as connection:
        connection.execute(update(calls).values(state="new"))
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    with (
        pytest.raises(LedgerError, match="took too long"),
        database.read(timeout=0.1) as connection,
    ):
        connection.execute(text(endless))
    with database.read() as connection:
        assert connection.scalar(text("SELECT 1")) == 1


Statement = tuple[str, Any]


def statements(ask: Callable[[], object]) -> list[Statement]:
    """Return what is run on calls while something is asked."""
    ran: list[Statement] = []

    def note(_c: object, _r: object, sql: str, parameters: object, *_: object) -> None:
        ran.append((sql, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        ask()
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    return [one for one in ran if "FROM calls" in one[0] or one[0].startswith("SET LOCAL enable")]


QUERIES = [
    query
    for query in product(
        (["main"], ["main", "b"]), (None, "new", "watched", "finished"), (None, "success"), (2, 20)
    )
    if query[1] in (None, "finished") or query[2] is None
]


@pytest.mark.parametrize(("names", "state", "result", "examined"), QUERIES)
def test_a_page_reads_calls_in_the_order_of_an_index_and_sorts_none(
    grown: Database, names: list[str], state: str | None, result: str | None, examined: int
) -> None:
    ran = statements(lambda: list_calls(grown, names, state, result, 1, 100, examined=examined))
    by_account = state in ("new", "watched")
    plans = list(explained(grown, ran))
    assert plans
    for sql, plan in plans:
        bounded = "label_sets" in sql and examined == 2
        if grown.shared:
            assert "Sort" not in plan
            assert "Seq Scan" not in plan
            index = "calls_unfinished" if by_account else "calls_pkey"
            assert re.search(f"Index (Only )?Scan using {index} on calls", plan), plan
            assert "(id > " in plan
            assert "(id <= " in plan or not bounded
        else:
            assert "TEMP B-TREE" not in plan
            assert "SCAN" not in plan
            column, index = "rowid", "INTEGER PRIMARY KEY ("
            if by_account:
                column, index = "id", "INDEX calls_unfinished (account_id=? AND "
            assert f"SEARCH calls USING {index}{column}>?" in plan.replace("COVERING ", "")
            assert f"{column}>? AND {column}<?" in plan or not bounded


def test_one_call_is_found_by_an_index(grown: Database) -> None:
    ((_, plan),) = explained(grown, statements(lambda: grown.run(find_call, "main", "C3")))
    # One of PostgreSQL, one of SQLite.
    assert "Index Cond: ((account_id = " in plan or "(account_id=? AND normalized_id=?)" in plan
    assert not re.search("Seq Scan on calls|SCAN calls", plan)


def test_finished_calls_are_read_in_pages(listed: Database) -> None:
    """All of these ended at the same time."""
    (whole,) = finished_pages(listed, NOW, NOW + 1)
    names = [f"c{n}" for n in range(1, 24, 2)]
    assert [call.reference_id for call in whole] == names
    assert count_finished(listed, NOW, NOW + 1) == len(names)
    for limit in (1, 5, len(names)):
        pages = list(finished_pages(listed, NOW, NOW + 1, limit=limit))
        assert {len(page) for page in pages[:-1]} <= {limit}
        assert [call for page in pages for call in page] == whole
    assert list(finished_pages(listed, NOW - 1, NOW)) == []
    ((first, *_),) = finished_pages(listed, NOW - 60, NOW - 59, ahead=60.0)
    assert (first.first_watched, first.finished_at) == (NOW - 60, NOW - 60)


def test_finished_calls_are_read_by_the_index_of_their_ends(grown: Database) -> None:
    ran = statements(lambda: next(finished_pages(grown, 50.0, 100.0, limit=10), None))
    ((_, plan),) = explained(grown, ran)
    if grown.shared:
        assert "Index Scan using calls_finished on calls" in plan
        assert not re.search(r"(?<!Incremental )Sort  \(", plan)
    else:
        assert "SEARCH calls USING INDEX calls_finished (finished_at>? AND finished_at<?)" in plan
        assert "TEMP B-TREE" not in plan


@pytest.mark.parametrize("names", [None, ["main"], ["main", "b"]])
def test_recent_calls_are_read_by_the_index_of_their_ends(
    grown: Database, names: list[str] | None
) -> None:
    ran = statements(lambda: grown.run(recent_calls, NOW, names))
    ((_, plan),) = explained(grown, ran)
    assert "calls_finished" in plan


def explained(database: Database, ran: Iterable[Statement]) -> Iterator[tuple[str, str]]:
    """Yield each query with its plan, under the settings that came before it."""
    with database.read() as connection:
        for sql, parameters in ran:
            if sql.startswith("SET"):
                connection.exec_driver_sql(sql)
                continue
            explain = "EXPLAIN" if database.shared else "EXPLAIN QUERY PLAN"
            steps = connection.exec_driver_sql(f"{explain} {sql}", parameters)
            yield sql, "\n".join(str(step[-1]) for step in steps)


def grow(database: Database) -> None:
    """Add many calls that have finished, nearly all of one account, and let the planner know."""
    with database.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO calls (account_id, normalized_id, reference_id, label_set_id,"
                " first_watched, state, state_since, result, finished_at)"
                " SELECT min(account_id), 'g' || n, 'g' || n, min(label_set_id), 0, 'new', 0,"
                " 'success', n FROM calls, generate_series(1, 20000) n GROUP BY n"
            )
        )
        connection.execute(text("ANALYZE calls"))
