"""When a target is paused, as a table: no clock, no receiver."""

from __future__ import annotations

import pytest

from exporter.notify.breaker import State, TargetBreaker


def after(steps: str, pause: float = 0.0) -> tuple[TargetBreaker, float]:
    """Return a breaker after some answers, 0.1 s apart, and the time.

    Args:
        steps: `.` stands for a good answer, a letter for an event that fails, and one in upper
            case for one with a `Retry-After` of 100 s.
        pause: seconds that pass before each answer.
    """
    breaker, now = TargetBreaker(lambda: 0.0), 0.0
    for step in steps:
        now += 0.1 + pause
        breaker.sent(ord(step), now)
        if step == ".":
            breaker.succeeded(ord(step), now)
        else:
            breaker.failed(ord(step), 100.0 if step.isupper() else None, now, now)
    return breaker, now


@pytest.mark.parametrize(
    ("steps", "paused"),
    [
        ("", 0),
        ("abcd", 0),
        ("abcde", 1),
        ("aaaaaaaaaaaa", 0),
        ("abababababab", 0),
        ("abcd.abcd.efgh.", 0),
        ("abcde.", 0),
        ("A", 0),
        ("AAAAA", 0),
        ("A.B.C.D", 0),
        ("AB", 100),
        (".AB", 100),
        ("abAB", 100),
        ("abcdE", 1),
        # Where bad events often come in a row, more of them are needed.
        ("abcd.abcdefgh", 0),
        ("A.BC", 0),
        ("A.BCDEF", 100),
    ],
)
def test_different_events_in_a_row_pause_a_target(steps: str, paused: float) -> None:
    breaker, now = after(steps)
    assert breaker.wait(now) == pytest.approx(paused)
    assert breaker.state(now) is (State.OPEN if paused else State.CLOSED)


def test_each_pause_is_twice_as_long_up_to_a_minute() -> None:
    breaker, now = after("abcde")
    waits = []
    for number in range(9):
        waits.append(breaker.wait(now))
        now += waits[-1]
        assert breaker.state(now) is State.HALF_OPEN
        event = number
        breaker.sent(event, now)
        assert breaker.on_trial
        assert not breaker.failed(event, None, now, now)
        assert not breaker.on_trial
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert breaker.wait(now) == 60
    assert breaker.succeeded(99, now)
    assert breaker.state(now) is State.CLOSED


def test_what_was_under_way_when_a_pause_began_does_not_make_it_longer() -> None:
    breaker, now = after("abcdefghij")
    assert breaker.wait(now) < 1


def test_a_confirmed_pause_is_kept() -> None:
    breaker, now = after("AB")
    assert not breaker.succeeded(98, now + 1)  # it was under way
    assert breaker.wait(now) == 100
    now += 100
    assert breaker.state(now) is State.HALF_OPEN
    breaker.sent(99, now)
    breaker.failed(99, 2_000.0, now, now)
    assert breaker.wait(now) == 900  # the longest


def test_a_good_trial_during_a_confirmed_pause_is_followed_by_another_trial() -> None:
    breaker, now = after("abcde")
    trial, started = 99, now + 1
    assert breaker.state(started) is State.HALF_OPEN
    breaker.sent(trial, started)
    for event in (97, 98):  # they were under way when the pause began
        breaker.failed(event, 100.0, now - 0.05, started)
    assert not breaker.succeeded(trial, started + 0.1)
    assert breaker.state(started + 0.1) is State.OPEN
    assert breaker.state(started + 100) is State.HALF_OPEN
    assert not breaker.on_trial


def test_a_failure_from_before_the_last_good_answer_proves_nothing() -> None:
    breaker, now = after(".")
    for event in range(8):
        assert not breaker.failed(event, 100.0, now - 0.05, now)
    assert breaker.state(now) is State.CLOSED
