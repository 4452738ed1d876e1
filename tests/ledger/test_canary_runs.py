from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection, event

from exporter.canaries.results import CanaryResult
from exporter.errors import LedgerBusyError, LedgerError
from exporter.ledger.access import open_for_command
from exporter.ledger.canary_runs import CanaryRuns, Intent, NotBegun
from exporter.ledger.engine import Database, open_database

DAY = 86_400.0
INTENT = Intent(
    "hourly", 3600, "main", "request", "answered", None, 3600.0, 3900.0, most=3, day=(0.0, DAY)
)


@pytest.fixture
def runs(database: Database) -> CanaryRuns:
    return CanaryRuns(database)


def begun(runs: CanaryRuns, intent: Intent = INTENT) -> int:
    row = runs.begin(intent)
    assert isinstance(row, int)
    return row


def totals(runs: CanaryRuns) -> dict[str, int]:
    return {result: number for (_, result), number in runs.look(["hourly"], 0.0).totals.items()}


def test_a_call_is_begun_once(runs: CanaryRuns) -> None:
    row = begun(runs)
    assert runs.begin(INTENT) is NotBegun.TAKEN
    assert runs.begin(replace(INTENT, request_id="other", account="b")) is NotBegun.TAKEN
    assert begun(runs, replace(INTENT, due_at=7200)) != row
    assert begun(runs, replace(INTENT, canary="daily")) != row
    assert totals(runs) == {}


def test_a_call_that_is_withdrawn_may_be_begun_again(runs: CanaryRuns) -> None:
    row = begun(runs)
    runs.withdraw(row)
    row = begun(runs)
    assert runs.accept(row, "id", 3601.0, 0.5)
    runs.withdraw(row)
    assert runs.begin(INTENT) is NotBegun.TAKEN


def test_a_day_has_so_many_calls(runs: CanaryRuns) -> None:
    for number in range(3):
        begun(runs, replace(INTENT, due_at=3600 * number, by_hand=number == 1))
    assert runs.begin(replace(INTENT, due_at=9000, by_hand=True)) is NotBegun.LIMITED
    assert totals(runs) == {}
    assert runs.begin(replace(INTENT, due_at=9000)) is NotBegun.LIMITED
    assert runs.begin(replace(INTENT, due_at=9000)) is NotBegun.TAKEN
    assert totals(runs) == {"limited": 1}
    begun(runs, replace(INTENT, due_at=90_000, day=(DAY, 2 * DAY)))


def test_a_call_ends_once(runs: CanaryRuns) -> None:
    row = begun(runs)
    assert runs.accept(row, "id", 3601.0, 0.5)
    (going_on,) = runs.look(["hourly"], 0.0).going_on
    assert (going_on.id, going_on.reference_id, going_on.account) == (row, "id", "main")
    assert runs.end(row, CanaryResult.SUCCESS, 3620.0, status="answered", seconds=19.0)
    assert not runs.end(row, CanaryResult.LATE, 3630.0)
    assert not runs.accept(row, "id", 3631.0, 0.5)
    assert runs.find(row) == ("success", "answered")
    state = runs.look(["hourly"], 0.0)
    assert state.going_on == []
    assert state.totals == {("hourly", "success"): 1}
    past = state.past["hourly"]
    assert (past.success, past.last_success_at) == (True, 3620.0)
    assert (past.accepted_seconds, past.finished_seconds) == (0.5, 19.0)


def test_what_was_not_placed_says_nothing_of_the_last_call(runs: CanaryRuns) -> None:
    runs.end(begun(runs), CanaryResult.SUCCESS, 3600.0)
    runs.end(begun(runs, replace(INTENT, due_at=7200)), CanaryResult.MISSED, 7200.0)
    assert runs.look(["hourly"], 0.0).past["hourly"].success is True
    runs.end(begun(runs, replace(INTENT, due_at=9000)), CanaryResult.REFUSED, 9000.0, code="103")
    past = runs.look(["hourly"], 0.0).past["hourly"]
    assert (past.success, past.last_success_at) == (False, 3600.0)


def test_one_asks_at_a_time(runs: CanaryRuns) -> None:
    row = begun(runs)
    runs.accept(row, "id", 3601.0, 0.5)
    assert runs.take_turn(row, 3602.0, 3607.0)
    assert not runs.take_turn(row, 3606.9, 3612.0)
    assert runs.take_turn(row, 3607.0, 3612.0)
    # The clock was set back.
    assert runs.take_turn(row, 12.0, 17.0)


def test_missed_calls_are_counted_once(runs: CanaryRuns) -> None:
    assert runs.look(["hourly"], 3000.0).past["hourly"].seen_until == 3000
    begun(runs, replace(INTENT, due_at=7200))
    due = [3600, 7200, 10_800]
    assert runs.count_missed("hourly", 3000, due) == 2
    assert runs.count_missed("hourly", 3000, due) == 0
    assert runs.look(["hourly"], 20_000.0).past["hourly"].seen_until == 10_800
    assert totals(runs) == {"missed": 2}


def test_a_canary_that_comes_back_has_missed_nothing(runs: CanaryRuns) -> None:
    runs.look(["hourly", "daily"], 3000.0)
    runs.forget_others(["daily"])
    past = runs.look(["hourly", "daily"], 90_000.0).past
    assert {name: item.seen_until for name, item in past.items()} == {
        "hourly": 90_000,
        "daily": 3000,
    }


def test_a_canary_that_was_new_when_the_clock_was_wrong_begins_anew(runs: CanaryRuns) -> None:
    assert runs.look(["hourly"], 90_000.0).past["hourly"].since == 90_000
    past = runs.look(["hourly"], 3000.0).past["hourly"]
    assert (past.since, past.seen_until) == (3000, 3000)


def test_a_canary_that_another_exporter_forgets_meanwhile_is_left_out(
    database: Database, runs: CanaryRuns
) -> None:
    runs.look(["daily", "hourly"], 0.0)

    @event.listens_for(database.engine, "before_cursor_execute")
    def forget(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("SELECT canaries.id, canaries.name, canaries.since"):
            connection.exec_driver_sql(
                "UPDATE canaries SET since = NULL, seen_until = NULL WHERE name = 'hourly'"
            )

    assert set(runs.look(["daily", "hourly"], 0.0).past) == {"daily"}


def test_old_calls_are_forgotten_and_totals_are_not(runs: CanaryRuns) -> None:
    row = begun(runs)
    runs.end(row, CanaryResult.SUCCESS, 3600.0)
    going_on = begun(runs, replace(INTENT, due_at=7200))
    runs.prune(5000.0, 3600.0 + 2 * DAY)  # of late
    assert runs.find(row)[0] == "success"
    runs.prune(5000.0, 3601.0 + 2 * DAY)
    assert runs.find(row) == (None, None)
    assert totals(runs) == {"success": 1}
    assert [run.id for run in runs.look(["hourly"], 0.0).going_on] == [going_on]


def test_of_many_exporters_one_begins(shared: Callable[[], Database]) -> None:
    """Each due time, and as many as the day allows, whoever is faster."""
    several = [CanaryRuns(shared()) for _ in range(4)]
    won: list[int] = []
    together = threading.Barrier(len(several))

    def begin(runs: CanaryRuns) -> None:
        for due in range(20):
            together.wait()
            row = runs.begin(replace(INTENT, due_at=due, most=12))
            if isinstance(row, int):
                won.append(due)

    threads = [threading.Thread(target=begin, args=(runs,)) for runs in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(12))
    assert totals(several[0]) == {"limited": 8}


def test_different_calls_at_the_same_time_keep_to_the_day(shared: Callable[[], Database]) -> None:
    several = [CanaryRuns(shared()) for _ in range(6)]
    won: list[int] = []
    together = threading.Barrier(len(several))

    def begin(number: int) -> None:
        together.wait()
        row = several[number].begin(replace(INTENT, due_at=number, most=2, by_hand=True))
        if isinstance(row, int):
            won.append(row)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 2


def test_a_command_opens_a_ledger_beside_its_exporter(path: Path) -> None:
    url = f"sqlite:///{path}"
    beside = open_for_command(url)  # nobody has made it yet
    row = begun(CanaryRuns(beside))
    exporter = open_database(url)
    with pytest.raises(LedgerBusyError):
        open_database(url)
    also = open_for_command(url)
    assert CanaryRuns(also).begin(INTENT) is NotBegun.TAKEN
    assert CanaryRuns(exporter).end(row, CanaryResult.SUCCESS, 1.0)
    assert CanaryRuns(beside).find(row) == ("success", None)
    with exporter.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(LedgerError, match="of another version"):
        open_for_command(url)
    for database in (beside, also, exporter):
        database.close()
