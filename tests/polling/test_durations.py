from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.polling.intervals import EDGES, WINDOW, DurationEstimator

AGES = [0.0, 1.0, 5.0, 15.0, 60.0, 600.0, 86_400.0]


def learnt(lives: Callable[[], float], calls: int) -> DurationEstimator:
    found = DurationEstimator(30.0)
    for _ in range(calls):
        life = lives()
        found.add(life, life)
    return found


def median(lives: DurationEstimator) -> float:
    return next(age for age in range(100_000) if lives.ended([age])[0] >= 0.5)


def test_at_first_half_are_believed_to_live_for_the_median() -> None:
    assert DurationEstimator(30.0).ended([30.0]) == pytest.approx([0.5], abs=0.01)


@pytest.mark.parametrize(
    ("after", "by", "ended"),
    [
        # an exact time, in the middle of a bin or at its edge
        (40.0, 40.0, [0, 0, 0, 0, 1, 1, 1]),
        (0.0, 0.0, [0, 1, 1, 1, 1, 1, 1]),
        # as an interval, of which bins are covered in part
        (20.0, 50.0, [0, 0, 0, 0, 1, 1, 1]),
        (10.0, 12.0, [0, 0, 0, 1, 1, 1, 1]),
        # what is no interval is the later time
        (50.0, 20.0, [0, 0, 0, 0, 1, 1, 1]),
        (-5.0, 0.5, [0, 1, 1, 1, 1, 1, 1]),
        (math.nan, 0.5, [0, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_what_was_seen_often_is_believed(after: float, by: float, ended: list[float]) -> None:
    lives = DurationEstimator(30.0)
    for _ in range(20 * WINDOW):
        lives.add(after, by)
    assert lives.ended(AGES) == pytest.approx(ended, abs=0.02)
    assert lives.calls == 20 * WINDOW


@pytest.mark.parametrize("by", [-1.0, math.nan, -math.inf, 1e9])
def test_what_is_no_age_is_passed_over(by: float) -> None:
    lives = DurationEstimator(30.0)
    lives.add(0.0, by)
    assert lives.calls == 0
    assert lives.ended(AGES) == DurationEstimator(30.0).ended(AGES)


def test_a_call_that_was_given_up_lived_longer() -> None:
    lives = DurationEstimator(30.0)
    for _ in range(500):
        lives.add(600.0, math.inf)
    assert lives.ended([599.0])[0] < 0.03
    lives.add(math.inf, math.inf)
    assert lives.ended([math.inf])[0] < 1.0


@pytest.mark.parametrize("every", [5.0, 15.0, 45.0])
def test_the_polls_own_interval_does_not_make_lives_longer(every: float) -> None:
    chance = random.Random(3)
    jittered = DurationEstimator(30.0)
    for _ in range(4 * WINDOW):
        life, before, age = chance.uniform(20, 60), 0.0, 0.0
        while age < life:
            before, age = age, age + every * chance.uniform(0.9, 1.1)
        jittered.add(before, age)
    # Counted when they are found, half of them would be seen to live for 40 s and half an interval.
    assert median(jittered) == pytest.approx(40, abs=max(2.0, every / 5))


def test_what_was_long_ago_is_forgotten() -> None:
    chance = random.Random(4)
    lives = learnt(lambda: chance.uniform(300, 600), 5 * WINDOW)
    assert median(lives) > 400
    for _ in range(2 * WINDOW):
        life = chance.uniform(5, 15)
        lives.add(life, life)
    assert median(lives) <= 15
    assert 1 - lives.ended([20.0])[0] == pytest.approx(math.exp(-2), abs=0.02)


def test_it_goes_on_for_ever() -> None:
    # Weights grow by a five-hundredth each time: they have to come down again.
    lives = learnt(lambda: 40.0, 130_000)
    assert lives.ended([30.0, 60.0]) == pytest.approx([0, 1], abs=0.01)


odd = st.floats() | st.sampled_from([*EDGES, math.nextafter(EDGES[5], 0)])


@given(st.lists(st.tuples(odd, odd, st.booleans()), max_size=60))
def test_any_history_is_a_distribution(history: list[tuple[float, float, bool]]) -> None:
    lives = DurationEstimator(30.0)
    for after, by, ended in history:
        lives.add(after, by if ended else math.inf)
        shares = lives.ended([*EDGES, 1e9])
        assert shares == sorted(shares)
        assert shares[0] >= 0
        assert shares[-1] <= 1 + 1e-9
