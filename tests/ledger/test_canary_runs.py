from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event

from exporter.calls import Finished, Key, Result, Status, WatchedCall
from exporter.errors import LedgerBusyError, LedgerError
from exporter.ids import reference_id
from exporter.ledger import canary_runs
from exporter.ledger.calls import find_call, list_calls, recent_calls
from exporter.ledger.canary_runs import CanaryResult, Intent, NotStarted, Run
from exporter.ledger.engine import Database, open_database
from exporter.ledger.outbox import Route
from exporter.ledger.store import Store, StoreSettings
from exporter.ledger.types import Committed, NewCall, Observation
from tests.ledger.racing import together
from tests.ledger.test_ledger_store import pay

DAY = 86_400.0
ID = reference_id("8eb2af6d-fb4c4814")

INTENT = Intent(
    "hourly", 3600, "main", "request", "answered", None, 3600.0, 3900.0, limit=3, day=(0.0, DAY)
)


class Runs:
    """The statements about runs, each run in a transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __getattr__(self, name: str) -> Any:  # Any: what the statement returns
        return partial(self._database.run, getattr(canary_runs, name))


@pytest.fixture
def runs(database: Database) -> Runs:
    return Runs(database)


def begun(runs: Runs, intent: Intent = INTENT) -> int:
    row = runs.begin(intent)
    assert isinstance(row, int)
    return row


def totals(runs: Runs) -> dict[str, int]:
    state = runs.read_state(["hourly"], 0.0)
    return {result: number for (_, result), number in state.totals.items()}


def test_a_call_is_begun_once(runs: Runs) -> None:
    row = begun(runs)
    assert runs.begin(INTENT) is NotStarted.EXISTS
    assert runs.begin(replace(INTENT, request_id="other", account="b")) is NotStarted.EXISTS
    assert begun(runs, replace(INTENT, due_at=7200)) != row
    assert begun(runs, replace(INTENT, canary="daily")) != row
    assert totals(runs) == {}


def test_a_call_that_is_withdrawn_may_be_begun_again(runs: Runs) -> None:
    row = begun(runs)
    runs.withdraw(row)
    row = begun(runs)
    assert runs.accept(row, ID, 3601.0, 0.5)
    runs.withdraw(row)
    assert runs.begin(INTENT) is NotStarted.EXISTS


def test_a_day_has_so_many_calls(runs: Runs) -> None:
    for number in range(3):
        begun(runs, replace(INTENT, due_at=3600 * number, by_hand=number == 1))
    assert runs.begin(replace(INTENT, due_at=9000, by_hand=True)) is NotStarted.LIMITED
    assert totals(runs) == {}
    assert runs.begin(replace(INTENT, due_at=9000)) is NotStarted.LIMITED
    assert runs.begin(replace(INTENT, due_at=9000)) is NotStarted.EXISTS
    assert totals(runs) == {"limited": 1}
    begun(runs, replace(INTENT, due_at=90_000, day=(DAY, 2 * DAY)))


def test_a_call_ends_once(runs: Runs) -> None:
    row = begun(runs)
    assert runs.accept(row, ID, 3601.0, 0.5)
    (run,) = runs.read_state(["hourly"], 0.0).open
    assert (run.id, run.reference_id, run.account) == (row, ID, "main")
    assert runs.end(row, CanaryResult.SUCCESS, 3620.0, status="answered", seconds=19.0)
    assert not runs.end(row, CanaryResult.LATE, 3630.0)
    assert not runs.accept(row, ID, 3631.0, 0.5)
    assert runs.find(row) == ("success", "answered")
    state = runs.read_state(["hourly"], 0.0)
    assert state.open == []
    assert state.totals == {("hourly", "success"): 1}
    past = state.canaries["hourly"]
    assert (past.success, past.last_success_at) == (True, 3620.0)
    assert (past.accepted_seconds, past.finished_seconds) == (0.5, 19.0)


def test_what_was_not_placed_says_nothing_of_the_last_call(runs: Runs) -> None:
    runs.end(begun(runs), CanaryResult.SUCCESS, 3600.0)
    runs.end(begun(runs, replace(INTENT, due_at=7200)), CanaryResult.MISSED, 7200.0)
    assert runs.read_state(["hourly"], 0.0).canaries["hourly"].success is True
    runs.end(begun(runs, replace(INTENT, due_at=9000)), CanaryResult.REFUSED, 9000.0, code="103")
    past = runs.read_state(["hourly"], 0.0).canaries["hourly"]
    assert (past.success, past.last_success_at) == (False, 3600.0)


def call_of(run: Run) -> WatchedCall:
    assert run.call_id is not None
    assert run.reference_id is not None
    return WatchedCall(run.call_id, run.reference_id, run.accepted_at or 0.0)


def finish(store: Store, call: WatchedCall, account: str = "main") -> Committed:
    finished = Finished(Result.SUCCESS, Status.ANSWERED, 13.0, Key.ONE)
    return store.commit([Observation(account, call, finished, 3620.0)])


def test_an_accepted_call_is_a_call_that_counts_nowhere(database: Database) -> None:
    runs, store = Runs(database), Store(database)
    store.configure(StoreSettings(exemplars=True))
    store.outbox.set_routes([Route("crm", 60.0)])
    # A callback may have come before the answer.
    store.push([[NewCall("main", reference_id(f"{ID}-"), {"campaign": "otp"})]], 3600.5)
    row = begun(runs)
    runs.accept(row, ID, 3601.0, 0.5)
    assert store.unfinished("main") == []  # whoever follows the run polls it
    (run,) = runs.read_state(["hourly"], 0.0).open
    assert (run.call_result, run.accepted_at) == (None, 3601.0)
    found = store.database.run(find_call, "main", ID)
    assert found is not None
    assert found.id == run.call_id
    pay(store, call_of(run).id, 350.0)
    committed = finish(store, call_of(run))
    assert (committed.added, committed.notify, committed.newest) == ({}, frozenset(), {})
    assert (committed.finished, committed.ignored) == ([], frozenset())
    assert finish(store, call_of(run)).ignored == {run.call_id}
    assert pay(store, call_of(run).id, 700.0) == {}
    assert store.database.run(store.snapshot).totals == {}
    assert store.database.run(recent_calls, 0.0)[0] == []
    assert list_calls(database, ["main"]).records == []
    (run,) = runs.read_state(["hourly"], 0.0).open
    assert (run.call_result, run.call_status, run.call_key) == ("success", "answered", "1")
    assert run.finished_at == 3620.0


def test_a_call_whose_run_has_ended_is_not_watched_any_more(database: Database) -> None:
    runs, store = Runs(database), Store(database)
    row = begun(runs)
    runs.accept(row, ID, 3601.0, 0.5)
    (run,) = runs.read_state(["hourly"], 0.0).open
    assert runs.end(row, CanaryResult.LATE, 3700.0)
    assert finish(store, call_of(run)).ignored == {run.call_id}
    found = store.database.run(find_call, "main", ID)
    assert found is not None
    assert found.state == "deleted"


def test_missed_calls_are_counted_once(runs: Runs) -> None:
    assert runs.read_state(["hourly"], 3000.0).canaries["hourly"].seen_until == 3000
    begun(runs, replace(INTENT, due_at=7200))
    due = [3600, 7200, 10_800]
    assert runs.count_missed("hourly", 3000, due) == 2
    assert runs.count_missed("hourly", 3000, due) == 0
    assert runs.read_state(["hourly"], 20_000.0).canaries["hourly"].seen_until == 10_800
    assert totals(runs) == {"missed": 2}


def test_a_canary_that_comes_back_has_missed_nothing(runs: Runs) -> None:
    # The clock was wrong when the canary was new: it begins anew.
    assert runs.read_state(["hourly", "daily"], 99_000.0).canaries["hourly"].since == 99_000
    runs.read_state(["hourly", "daily"], 3000.0)
    runs.reset_others(["daily"])
    past = runs.read_state(["hourly", "daily"], 90_000.0).canaries
    assert {name: item.seen_until for name, item in past.items()} == {
        "hourly": 90_000,
        "daily": 3000,
    }


def test_a_canary_that_another_exporter_forgets_meanwhile_is_left_out(
    database: Database, runs: Runs
) -> None:
    runs.read_state(["daily", "hourly"], 0.0)

    @event.listens_for(database.engine, "before_cursor_execute")
    def forget(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("SELECT canaries.id, canaries.name, canaries.since"):
            connection.exec_driver_sql(
                "UPDATE canaries SET since = NULL, seen_until = NULL WHERE name = 'hourly'"
            )

    assert set(runs.read_state(["daily", "hourly"], 0.0).canaries) == {"daily"}


def test_old_calls_are_forgotten_and_totals_are_not(runs: Runs) -> None:
    row = begun(runs)
    runs.end(row, CanaryResult.SUCCESS, 3600.0)
    other = begun(runs, replace(INTENT, due_at=7200))
    runs.prune(5000.0, 3600.0 + 2 * DAY)  # of late
    assert runs.find(row)[0] == "success"
    runs.prune(5000.0, 3601.0 + 2 * DAY)
    assert runs.find(row) == (None, None)
    assert totals(runs) == {"success": 1}
    assert [run.id for run in runs.read_state(["hourly"], 0.0).open] == [other]


def test_of_many_exporters_one_begins(shared: Callable[[], Database]) -> None:
    """Each due time, and as many as the day allows, whoever is faster."""
    several = [Runs(shared()) for _ in range(4)]
    for due in range(20):
        intent = replace(INTENT, due_at=due, limit=12)
        rows = together(*(partial(runs.begin, intent) for runs in several))
        assert sum(isinstance(row, int) for row in rows) == (due < 12)
    assert totals(several[0]) == {"limited": 8}
    by_hand = replace(INTENT, canary="daily", limit=2, by_hand=True)
    rows = together(
        *(partial(runs.begin, replace(by_hand, due_at=n)) for n, runs in enumerate(several))
    )
    assert sum(isinstance(row, int) for row in rows) == 2


def test_a_command_opens_a_ledger_beside_its_exporter(path: Path) -> None:
    url = f"sqlite:///{path}"
    beside = open_database(url, exclusive=False)  # nobody has made it yet
    row = begun(Runs(beside))
    exporter = open_database(url)
    with pytest.raises(LedgerBusyError):
        open_database(url)
    also = open_database(url, exclusive=False)
    assert Runs(also).begin(INTENT) is NotStarted.EXISTS
    assert Runs(exporter).end(row, CanaryResult.SUCCESS, 1.0)
    assert Runs(beside).find(row) == ("success", None)
    with exporter.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(LedgerError, match="of another version"):
        open_database(url, exclusive=False)
    for database in (beside, also, exporter):
        database.close()
