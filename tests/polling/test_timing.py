from __future__ import annotations

import pytest

from exporter.calls import EXPIRED, CallState, Finished, Patience, Result, Status, WatchedCall
from exporter.ids import reference_id
from exporter.polling.adaptive import ENOUGH
from exporter.polling.settings import PollingSettings
from exporter.polling.timing import Timing

NOW, WALL = 1000.0, 1_764_000_000.0
GROWING = PollingSettings(15.0, 300.0, Patience(600, 259_200), 20, 32)
ADAPTIVE = PollingSettings(15.0, 300.0, Patience(600, 259_200), 20, 32, adaptive=True)
BUSY = Finished(Result.SUCCESS, Status.BUSY)
NOT_FOUND = Finished(Result.UNKNOWN, Status.NOT_FOUND)


def call(row: int = 1, age: float = 0.0, state: CallState = CallState.NEW) -> WatchedCall:
    return WatchedCall(row, reference_id("a"), WALL - age, state)


def learnt(settings: PollingSettings = ADAPTIVE) -> Timing:
    """Return the timing of an account whose calls live for 60 s, watched for the last time now."""
    timing = Timing(settings)
    for number in range(200):
        at = WALL + 20 * number
        timing.learn(call(age=60 - 20 * number), BUSY, at - 3, at)
    timing.first(call(), NOW, WALL)
    return timing


def test_a_new_call_is_asked_for_at_once_where_nothing_is_known_or_long_silence_was() -> None:
    for timing in (Timing(ADAPTIVE), learnt(GROWING)):
        assert [timing.first(call(), NOW + n, WALL) for n in range(3)] == [0, 0, 0]
    timing = learnt()
    assert any(timing.first(call(), NOW + n, WALL) > 30 for n in range(20))
    assert timing.first(call(), NOW + 320, WALL) == 0
    assert any(timing.first(call(), NOW + 321 + n, WALL) > 30 for n in range(20))


def test_one_that_was_asked_for_before_is_asked_for_within_its_wait() -> None:
    timing = Timing(ADAPTIVE)
    waits = [timing.first(call(state=CallState.QUEUED), NOW, WALL) for _ in range(200)]
    assert 0 <= min(waits) < 5
    assert 10 < max(waits) <= 16.5


def test_a_clock_that_was_set_back_makes_no_age_negative() -> None:
    timing = learnt()
    assert timing.first(call(age=-1e6), NOW, WALL) < 80
    assert 0 < timing.again(call(age=-1e6), WALL) < 80


def test_it_learns_of_ends_between_two_polls() -> None:
    assert learnt().pace.lives.ended([50.0, 62.0]) == pytest.approx([0, 1], abs=0.05)


@pytest.mark.parametrize(
    ("failures", "since", "told", "ended_by_20"),
    [
        (0, 0.0, set(), 0.0),  # it had not ended at the poll before, 30 s ago
        (1, 0.0, set(), 0.6),  # which failed, and saw nothing
        (1, WALL - 30, set(), 0.0),  # but another had changed its state by then
        (1, 0.0, set(range(400)), 0.0),  # somebody told of it as it ended
    ],
)
def test_what_a_poll_can_have_seen(
    failures: int, since: float, told: set[int], ended_by_20: float
) -> None:
    timing = Timing(ADAPTIVE)
    for row in range(400):
        watched = call(row, age=60)
        watched.state_since = since
        timing.hinted = told
        timing.learn(watched, BUSY, WALL - 30, WALL, failed=failures > 0)
    assert timing.pace.lives.ended([20.0])[0] == pytest.approx(ended_by_20, abs=0.1)


def test_what_was_told_of_is_known() -> None:
    timing = Timing(ADAPTIVE)
    timing.hinted.add(1)
    timing.learn(call(1, age=60), BUSY, 0.0, WALL)
    timing.learn(call(2, age=60), BUSY, WALL - 3, WALL)
    timing.learn(call(3, age=60), BUSY, 0.0, WALL, told=True)
    assert timing.pace.lives.calls == 3


def test_what_says_nothing_of_how_long_calls_live() -> None:
    timing = Timing(ADAPTIVE)
    timing.learn(call(age=60), NOT_FOUND, 0.0, WALL)
    assert timing.pace.lives.calls == 0
    timing.learn(call(age=600), EXPIRED, 0.0, WALL)
    assert timing.pace.lives.calls == 1
    assert timing.pace.lives.ended([600.0])[0] < timing.pace.lives.ended([1e5])[0]


def test_the_past_is_learnt_from() -> None:
    timing = Timing(ADAPTIVE)
    timing.recall((Status.BUSY, 60.0) for _ in range(ENOUGH - 1))
    timing.recall([(Status.NOT_FOUND, 60.0)])
    assert (timing.pace.lives.calls, timing.pace.plan) == (ENOUGH - 1, None)
    timing.recall([(Status.EXPIRED, 3e5)])
    assert timing.pace.plan
    assert timing.pace.lives.ended([40.0, 65.0]) == pytest.approx([0.1, 0.9], abs=0.05)
    growing = Timing(GROWING)
    growing.recall((Status.BUSY, 60.0) for _ in range(ENOUGH))
    assert growing.pace.lives.calls == 0


def test_another_configuration() -> None:
    timing = learnt()
    timing.configure(ADAPTIVE)
    assert timing.pace.lives.calls == 200
    timing.configure(GROWING)
    assert timing.first(call(), NOW, WALL) == 0
    assert 13.4 < timing.again(call(), WALL) < 16.6
    timing.learn(call(age=60), BUSY, WALL - 3, WALL)
    timing.configure(ADAPTIVE)
    assert timing.pace.lives.calls == 0
