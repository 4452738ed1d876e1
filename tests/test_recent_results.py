from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from exporter.calls import Result, Status
from exporter.ids import Kind
from exporter.ledger.types import FinishedCall
from exporter.recent_results import MINUTES, NEWEST, Minute, RecentResults, local_midnight

DAY = 86_400.0
MIDNIGHT = 20_000 * DAY


def midnight(at: float) -> float:
    return at // DAY * DAY


def history_of(*calls: FinishedCall, since: float = 0.0) -> RecentResults:
    history = RecentResults(midnight)
    history.load(["main"], calls, since)
    return history


def ended(
    at: float,
    result: Result = Result.SUCCESS,
    status: Status = Status.ANSWERED,
    account: str = "main",
) -> FinishedCall:
    return FinishedCall(account, f"id-{at:.0f}", result, status, None, None, {}, at - 30, at)


def test_the_day() -> None:
    history = history_of(*map(ended, (MIDNIGHT - 1, MIDNIGHT, MIDNIGHT + DAY - 1)))
    history.add(ended(MIDNIGHT + 5, Result.FAILURE, Status.BUSY))
    history.add(ended(MIDNIGHT + 6, Result.SUCCESS, Status.BUSY))
    today = history.recent("main", MIDNIGHT + DAY - 1)
    assert today.today.total() == 4
    assert today.results == {Result.SUCCESS: 3, Result.FAILURE: 1}
    assert today.statuses == {Status.ANSWERED: 2, Status.BUSY: 2}
    assert today.since == MIDNIGHT
    tomorrow = history.recent("main", MIDNIGHT + DAY)
    assert tomorrow.today.total() == 0


def test_messages_have_results_but_no_answers() -> None:
    message = ended(MIDNIGHT + 1, Result.FAILURE, Status.NONE)._replace(kind=Kind.MESSAGE)
    recent = history_of(ended(MIDNIGHT), message).recent("main", MIDNIGHT + 2)
    assert recent.results == {Result.SUCCESS: 1, Result.FAILURE: 1}
    assert recent.statuses == {Status.ANSWERED: 1}
    minute = recent.minutes[-1]
    assert (minute.finished, minute.calls, minute.answered) == (2, 1, 1)
    assert recent.failures == (message,)


def test_what_is_late_counts_for_its_own_day() -> None:
    history = history_of(*map(ended, (MIDNIGHT - 1, MIDNIGHT + 1, MIDNIGHT - 2, MIDNIGHT + 2)))
    assert history.recent("main", MIDNIGHT + 3).today.total() == 2
    assert history.recent("main", MIDNIGHT - 1).today.total() == 2


def test_a_clock_that_was_wrong_for_a_while() -> None:
    history = history_of(*map(ended, (MIDNIGHT + 1, MIDNIGHT + 900 * DAY, MIDNIGHT + 2)))
    recent = history.recent("main", MIDNIGHT + 3)
    assert recent.today.total() == 2
    assert sum(minute.finished for minute in recent.minutes) == 2


def test_it_says_since_when_it_counts() -> None:
    history = history_of(since=MIDNIGHT + 20)
    assert history.recent("main", MIDNIGHT + 50).since == MIDNIGHT + 20
    assert history.recent("main", MIDNIGHT + DAY).since == MIDNIGHT + DAY


def test_the_minutes() -> None:
    history = history_of()
    start = MIDNIGHT + 7200
    for number in range(2 * MINUTES):
        history.add(ended(start + number * 60))
    history.add(ended(start, Result.FAILURE))  # long past
    now = start + (2 * MINUTES - 1) * 60
    history.add(ended(now + 59, Result.UNKNOWN, Status.EXPIRED))
    minutes = history.recent("main", now + 59).minutes
    assert len(minutes) == MINUTES
    assert minutes[-1] == Minute(now, success=1, unknown=1, answered=1)
    assert minutes[-1].finished == 2
    assert minutes[0] == Minute(now - (MINUTES - 1) * 60, success=1, answered=1)
    assert sum(minute.failure for minute in minutes) == 0
    # Nothing comes from the past when nothing has happened since.
    later = history.recent("main", now + 30 * 60).minutes
    assert [minute.finished for minute in later[-30:]] == [0] * 30
    assert later[-31].finished == 2


def test_it_does_not_grow() -> None:
    history = history_of()
    for number in range(10_000):
        history.add(ended(MIDNIGHT + number * 3600.0 * (-1) ** number, Result.FAILURE))
    kept = history._histories["main"]
    assert (len(kept.days), len(kept.minutes)) == (
        2,
        2 * MINUTES,
    )


def test_the_newest_failures() -> None:
    history = history_of()
    for number in range(3 * NEWEST):
        history.add(ended(MIDNIGHT + number, list(Result)[number % 3]))
    failures = history.recent("main", MIDNIGHT + 100).failures
    assert [call.finished_at - MIDNIGHT for call in failures] == [
        number for number in range(3 * NEWEST - 1, 0, -1) if number % 3
    ][:NEWEST]


def test_accounts_are_apart() -> None:
    histories = RecentResults(midnight)
    histories.load("ab", [ended(MIDNIGHT + 1, account="a")], MIDNIGHT)
    histories.add(ended(MIDNIGHT + 2, account="a"))
    histories.add(ended(MIDNIGHT + 2, account="c"))
    counts = [histories.recent(name, MIDNIGHT + 3).today.total() for name in "abc"]
    assert counts == [2, 0, 0]
    assert histories.recent("b", MIDNIGHT + 3).since == MIDNIGHT
    histories.forget("a")
    assert histories.recent("a", MIDNIGHT + 3).today.total() == 0


@pytest.mark.parametrize(("now", "since"), [(100.0, -3500.0), (7200.0, 0.0)])
def test_the_past_that_matters(now: float, since: float) -> None:
    assert RecentResults(midnight).needed_since(MIDNIGHT + now) == MIDNIGHT + since


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def use(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    return use


def test_midnight_is_that_of_the_zone(zone: Callable[[str], None]) -> None:
    try:
        zone("<+07>-7")
        assert local_midnight(MIDNIGHT + 3600) == MIDNIGHT - 7 * 3600
        assert local_midnight(MIDNIGHT + 17 * 3600) == MIDNIGHT + 17 * 3600
        # A day of 25 hours: 25 October 2026 in Central Europe.
        zone("CET-1CEST,M3.5.0,M10.5.0/3")
        began = 1_792_879_200.0
        assert [local_midnight(began + 3600 * hour) for hour in (0, 24, 25)] == [
            began,
            began,
            began + 25 * 3600,
        ]
    finally:
        zone("UTC")
