"""Calls that a ledger of an older version holds under two spellings of one id."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, text

from exporter.calls import Finished, Result, Status
from exporter.ids import reference_id
from exporter.ledger.calls import find_call, list_sources
from exporter.ledger.engine import open_database
from exporter.ledger.store import Store
from exporter.ledger.totals import TotalKind
from exporter.ledger.types import DELETED, NewCall, Observation
from tests.ledger.old_ledgers import ledger_at

# The last revision that compared ids with their dashes.
BEFORE = "0009"

PLAIN, DASHED, OTHER = "8eb2af6dfb4c", "8EB2af6d-fb4c", "8eb2-af6d-fb4c"


def old_ledger(url: str, fill: Callable[[Connection], None]) -> None:
    """Make a ledger as the version before did, and fill it."""

    def with_accounts(connection: Connection) -> None:
        for statement in (
            "INSERT INTO accounts (id, name) VALUES (1, 'main'), (2, 'b')",
            "INSERT INTO label_sets (id, labels) VALUES (1, '{}'), (2, '{\"campaign\": \"otp\"}')",
        ):
            connection.execute(text(statement))
        fill(connection)

    ledger_at(BEFORE, url, with_accounts)


def insert(connection: Connection, row: int, name: str, **columns: object) -> None:
    values = {
        "id": row,
        "account_id": 1,
        "reference_key": name.lower(),
        "reference_id": name,
        "label_set_id": 1,
        "pushed": False,
        "first_watched": 100.0 + row,
        "state": "new",
        "state_since": 100.0 + row,
    } | columns
    names = ", ".join(values)
    marks = ", ".join(f":{name}" for name in values)
    connection.execute(text(f"INSERT INTO calls ({names}) VALUES ({marks})"), values)


def name_it(connection: Connection, source: str, row: int) -> None:
    statement = text("INSERT INTO call_sources (source, call_id) VALUES (:source, :row)")
    connection.execute(statement, {"source": source, "row": row})


FAILURE = {"result": "failure", "status": "busy", "finished_at": 300.0}
SUCCESS = {"result": "success", "status": "answered", "finished_at": 400.0, "duration": 9.0}
EXPIRED = {"result": "unknown", "status": "expired", "finished_at": 200.0}
WAS_DELETED = {"result": DELETED, "finished_at": 200.0}


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        ([(PLAIN, {}), (DASHED, {})], 1),
        # The spelling that the provider knows.
        ([(PLAIN, {"state": "not_found"}), (DASHED, {"state": "queued"})], 2),
        # What has been counted stays, and the rest will not be.
        ([(PLAIN, {}), (DASHED, SUCCESS)], 2),
        ([(PLAIN, EXPIRED), (DASHED, {"state": "queued"})], 1),
        ([(PLAIN, EXPIRED), (DASHED, SUCCESS), (OTHER, {})], 2),
        ([(PLAIN, FAILURE), (DASHED, SUCCESS)], 1),
        # Deleted under one spelling, and wanted under another.
        ([(PLAIN, WAS_DELETED), (DASHED, {})], 2),
        ([(PLAIN, WAS_DELETED), (DASHED, FAILURE)], 2),
        ([(PLAIN, WAS_DELETED), (DASHED, WAS_DELETED)], 1),
    ],
)
def test_one_call_is_left_of_two_spellings(
    old_url: str, rows: list[tuple[str, dict[str, object]]], kept: int
) -> None:
    def fill(connection: Connection) -> None:
        for row, (name, columns) in enumerate(rows, 1):
            insert(connection, row, name, **columns)
        # Neither of another account, nor of another id.
        insert(connection, 8, DASHED, account_id=2)
        insert(connection, 9, f"{DASHED}-1")

    old_ledger(old_url, fill)
    store = Store(open_database(old_url))
    record, *others = [store.database.run(find_call, "main", name) for name, _ in rows]
    assert record is not None
    assert all(other == record for other in others)
    name, columns = rows[kept - 1]
    assert (record.id, record.reference_id) == (kept, name)
    assert (record.result, record.status) == (columns.get("result"), columns.get("status"))
    open_rows = {kept} if record.result is None else set()
    assert {stored.call.id for stored in store.unfinished("main")} == open_rows | {9}
    assert [stored.call.id for stored in store.unfinished("b")] == [8]
    # Whatever spelling a source names now, nothing is new.
    again = store.push([[NewCall("main", reference_id(n), {}) for n, _ in rows]], 500.0)
    assert len(again.added) == (1 if record.result == DELETED else 0)
    store.database.close()


def test_what_was_known_of_each_spelling_is_kept(old_url: str) -> None:
    def fill(connection: Connection) -> None:
        insert(connection, 1, PLAIN, state="queued", label_set_id=2, first_watched=100.0)
        insert(connection, 2, DASHED, pushed=True, first_watched=90.0, price=300.0)
        insert(connection, 3, OTHER)
        for source, row in [("file:/a", 1), ("file:/a", 2), ("file:/b", 2), ("config", 3)]:
            name_it(connection, source, row)

    old_ledger(old_url, fill)
    store = Store(open_database(old_url))
    (stored,) = store.unfinished("main")
    assert (stored.call.reference_id, stored.call.first_watched) == (PLAIN, 90.0)
    assert sorted(store.database.run(list_sources)) == ["config", "file:/a", "file:/b"]
    for source in store.database.run(list_sources):
        store.keep_only(source, set())
    # Handed over under one spelling: it does not end with the files.
    assert [one.call.id for one in store.unfinished("main")] == [1]
    done = Finished(Result.SUCCESS, Status.ANSWERED, 13.0)
    assert store.commit([Observation("main", stored.call, done, 500.0)]).finished == 1
    totals = {cell.total: value for cell, value in store.snapshot().totals.items()}
    assert totals[TotalKind.CALLS] == 1
    assert totals[TotalKind.PRICE] == 300.0
    store.database.close()


def test_a_price_that_was_added_is_not_added_again(old_url: str) -> None:
    def fill(connection: Connection) -> None:
        insert(connection, 1, PLAIN, **FAILURE)
        insert(connection, 2, DASHED, **SUCCESS, price=300.0)

    old_ledger(old_url, fill)
    store = Store(open_database(old_url))
    store.set_price(1, 300.0)
    assert not any(cell.total is TotalKind.PRICE for cell in store.snapshot().totals)
    store.database.close()


def test_an_exporter_of_the_version_before_takes_no_call_in_twice(old_url: str) -> None:
    """It looks calls up by a column that is not there any more, so it adds none."""
    old_ledger(old_url, lambda connection: insert(connection, 1, DASHED))
    store = Store(open_database(old_url))
    with store.database.begin() as connection:
        assert connection.scalar(text("SELECT oldest_user FROM compatibility")) > BEFORE
        names = connection.execute(text("SELECT * FROM calls")).keys()
        assert "reference_key" not in names
    store.database.close()
