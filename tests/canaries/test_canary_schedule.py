from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.canaries.schedule import Cron, Every, Schedule, grace

SAIGON = ZoneInfo("Asia/Ho_Chi_Minh")
BERLIN = ZoneInfo("Europe/Berlin")  # the clocks change at 02:00 and 03:00


def at(text: str, zone: ZoneInfo | None = None) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone or UTC).timestamp()


def shown(schedule: Schedule, start: float, number: int) -> list[str]:
    due = islice(schedule.after(start), number)
    return [f"{datetime.fromtimestamp(moment, UTC):%d %H:%M}" for moment in due]


def test_every_is_counted_from_the_epoch() -> None:
    assert shown(Every(3600), at("2026-03-01T10:20:00"), 2) == ["01 11:00", "01 12:00"]
    assert shown(Every(5400), at("2026-03-01T00:00:00"), 2) == ["01 01:30", "01 03:00"]
    assert Every(3600).last(at("2026-03-01T11:00:00")) == at("2026-03-01T11:00:00")
    assert Every(3600).last(at("2026-03-01T11:59:59")) == at("2026-03-01T11:00:00")


def test_cron_is_by_its_time_zone() -> None:
    schedule = Cron("30 8-18/2 * * 1-5", SAIGON)
    start = at("2026-11-27T18:00:00", SAIGON)  # a Friday
    assert shown(schedule, start, 2) == ["27 11:30", "30 01:30"]
    assert schedule.last(start) == at("2026-11-27T16:30:00", SAIGON)
    assert schedule.last(at("2026-11-30T08:29:59", SAIGON)) == at("2026-11-27T18:30:00", SAIGON)


@pytest.mark.parametrize(
    ("expression", "start", "due"),
    [
        # Leapt over: 02:30 is not there on 29 March, and comes as 03:00 in summer time.
        ("30 2 * * *", "2026-03-28T12:00:00", ["29 01:00", "30 00:30"]),
        # Twice: 02:30 comes in summer time first, on 25 October, and then counts no more.
        ("30 2 * * *", "2026-10-24T12:00:00", ["25 00:30", "26 01:30"]),
        # Each hour that passes.
        ("0 * * * *", "2026-10-24T23:30:00", ["25 00:00", "25 01:00", "25 02:00"]),
        ("0 * * * *", "2026-03-28T23:30:00", ["29 00:00", "29 01:00", "29 02:00"]),
        # Two of which one is leapt over come once.
        ("30 2,3 * * *", "2026-03-28T23:30:00", ["29 01:00", "29 01:30", "30 00:30"]),
    ],
)
def test_clocks_that_change(expression: str, start: str, due: list[str]) -> None:
    schedule = Cron(expression, BERLIN)
    assert shown(schedule, at(start), len(due)) == due


@pytest.mark.parametrize("expression", ["30 2 * * *", "0 * * * *", "15,45 1-3 * * *"])
def test_what_was_last_due_does_not_depend_on_when_it_is_asked(expression: str) -> None:
    schedule = Cron(expression, BERLIN)
    for start in (at("2026-03-28T20:00:00"), at("2026-10-24T20:00:00")):
        due = list(islice(schedule.after(start), 12))
        assert all(earlier < later for earlier, later in pairwise(due))
        for earlier, later in pairwise(due):
            for moment in range(earlier, later, 300):
                assert schedule.last(moment) == earlier
                assert next(schedule.after(moment)) == later


@given(st.integers(600, 7 * 86_400), st.floats(0, 4e9))
def test_the_last_and_the_next_are_neighbours(seconds: int, moment: float) -> None:
    schedule = Every(seconds)
    last, following = schedule.last(moment), next(schedule.after(moment))
    assert last <= moment < following == last + seconds


def test_nothing_is_due_for_years() -> None:
    schedule = Cron("0 0 29 2 *", SAIGON)
    assert schedule.last(at("2027-01-01T00:00:00")) == at("2024-02-29T00:00:00", SAIGON)


@pytest.mark.parametrize(
    ("schedule", "seconds"),
    [(Every(600), 60), (Every(3600), 360), (Every(86_400), 600), (Cron("0 8 * * *", SAIGON), 600)],
)
def test_for_how_long_a_call_may_be_made_up_for(schedule: Schedule, seconds: float) -> None:
    assert grace(schedule, schedule.last(at("2026-03-01T10:20:00"))) == seconds
