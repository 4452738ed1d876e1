from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.ids import Kind
from exporter.polling.intervals import (
    ENOUGH,
    EXPLORING,
    LATE,
    DurationEstimator,
    PollIntervals,
    plan,
)
from tests.polling.scene import SETTINGS, Scene, now, ringing

INTERVAL, MAX_INTERVAL = 15.0, 300.0


def intervals_of(**changes: Any) -> PollIntervals:  # Any: of `PollingSettings`
    return PollIntervals(replace(SETTINGS, **{"adaptive": True, **changes}).sections[1])


GROWING = intervals_of(adaptive=False)
Lives = Callable[[random.Random], float]


def short(chance: random.Random) -> float:
    return chance.uniform(3, 8)


def minutes(chance: random.Random) -> float:
    return chance.uniform(200, 400)


def hours(chance: random.Random) -> float:
    return chance.uniform(3600, 20_000)


class Followed(NamedTuple):
    """A call that was polled until its end: how often, how late, how long at most in between."""

    requests: int
    delay: float
    longest: float


def follow(
    intervals: PollIntervals, lives: Lives, calls: int, seed: int = 1, every: float = 20.0
) -> list[Followed]:
    """Have calls polled at a pace, which learns from each as it ends; one comes every so often."""
    chance, found = random.Random(seed), []
    for number in range(calls):
        life, before, requests, longest = lives(chance), 0.0, 1, 0.0
        age = longest = intervals.first(0.0, chance.random())
        while age < life:
            wait = intervals.next(age, 0, chance.random())
            longest, before, age = max(longest, wait), age, age + wait
            requests += 1
        intervals.learn(before, age, number * every)
        found.append(Followed(requests, age - life, longest))
    return found


def mean_requests(followed: list[Followed]) -> float:
    return sum(call.requests for call in followed) / len(followed)


def late(followed: list[Followed], than: float = INTERVAL * 1.1) -> float:
    return sum(call.delay > than for call in followed) / len(followed)


@pytest.mark.parametrize(
    ("age", "failures", "seconds"),
    [
        *((0, 0, 15), (149, 0, 15), (150, 0, 22.5), (172.5, 0, 33.75), (1e9, 0, 300), (-5, 0, 15)),
        *((0, 1, 30), (0, 2, 60), (0, 9, 300), (1e9, 1, 300), (0, 10**6, 300)),
    ],
)
def test_intervals_grow_with_age_and_failures(age: float, failures: int, seconds: float) -> None:
    assert GROWING.next(age, failures, 0.5) == pytest.approx(seconds)
    assert GROWING.next(age, failures, 0.0) == pytest.approx(0.9 * seconds)
    assert GROWING.next(age, failures, 1.0) == pytest.approx(min(MAX_INTERVAL, 1.1 * seconds))


def test_each_growing_interval_is_half_as_long_again() -> None:
    intervals, age, waits = intervals_of(adaptive=False, max_interval=1e9), 150.0, []
    for _ in range(5):
        waits.append(intervals.next(age, 0, 0.5))
        age += waits[-1]
    assert waits == pytest.approx([22.5 * 1.5**n for n in range(5)])


@pytest.mark.parametrize("age", [0.0, 10.0, 149.0, 200.0, 1e6])
@pytest.mark.parametrize("failures", [0, 1, 3])
def test_before_enough_is_learnt_it_is_the_growing_pace(age: float, failures: int) -> None:
    intervals = intervals_of()
    for _ in range(ENOUGH - 1):
        intervals.learn(10.0, 20.0, 0.0)
    assert intervals.first(age, 0.5) == 0
    assert intervals.next(age, failures, 0.5) == GROWING.next(age, failures, 0.5)
    intervals.learn(10.0, 20.0, 0.0)
    assert intervals.first(0.0, 0.5) > 0


@pytest.mark.parametrize(
    ("lives", "most", "share_late"),
    [
        # `most`: requests for a call; with one every 15 s they are 4.1, 1.6, 21.5 and some 800
        (ringing, 2.5, 0.07),
        (short, 1.1, 0.01),
        (minutes, 8.0, 0.10),
        (hours, 80.0, 1.0),
    ],
)
def test_what_a_result_costs(lives: Lives, most: float, share_late: float) -> None:
    followed = follow(intervals_of(), lives, 3000)[1000:]
    assert mean_requests(followed) <= most
    assert late(followed) <= share_late
    assert max(call.longest for call in followed) <= MAX_INTERVAL


@pytest.mark.parametrize(
    ("before", "after", "within"),
    [
        # Shorter lives make results late until they are noticed, longer ones cost requests.
        (ringing, short, 500),
        (minutes, ringing, 500),
        (hours, short, 500),
        (short, ringing, 500),
        (ringing, minutes, 2000),
        (hours, minutes, 2000),
    ],
)
def test_what_has_changed_is_followed(before: Lives, after: Lives, within: int) -> None:
    intervals = intervals_of()
    follow(intervals, before, 2000)
    assert late(follow(intervals, after, within + 500, seed=2)[within:]) <= 0.12


def test_one_call_in_sixteen_comes_early_and_the_rest_with_jitter() -> None:
    intervals = intervals_of()
    for number in range(500):
        intervals.learn(60.0 + number % 30, 60.0 + number % 30, number * 20.0)
    planned = intervals.first(0.0, EXPLORING + (1 - EXPLORING) / 2)
    assert 50 < planned < 75
    for chance, share in [
        (0.0, 0.0), (EXPLORING / 2, 0.5), (EXPLORING, 0.9), (1.0, 1.1),
    ]:  # fmt: skip
        assert intervals.first(0.0, chance) == pytest.approx(share * planned)
    assert intervals.first(20.0, EXPLORING) == pytest.approx(0.9 * planned - 20)
    assert intervals.first(3600.0, EXPLORING) == 0
    longest = intervals.next(planned, 0, 0.0) * 1.1 / 0.9
    assert intervals.next(planned, 0, 1.0) == pytest.approx(longest)


def test_failures_in_a_row_double_the_wait() -> None:
    intervals = intervals_of()
    follow(intervals, ringing, 200)
    waits = [intervals.next(40.0, failures, 0.5) for failures in (0, 1, 2, 10, 10**6)]
    assert waits[1:3] == pytest.approx([2 * waits[0], 4 * waits[0]])
    assert waits[3:] == [MAX_INTERVAL, MAX_INTERVAL]


def test_where_ends_are_told_of_polls_are_fewer() -> None:
    asked, told = (intervals_of() for _ in range(2))
    chance = random.Random(5)
    for number in range(1000):
        life = ringing(chance)
        asked.learn(life, life, number * 20.0)
        told.learn(0.0, life, number * 20.0, notified=True)
    assert asked.plan
    assert told.plan
    assert told.plan.requests < 0.7 * asked.plan.requests
    assert told.durations.ended([20, 60]) == asked.durations.ended([20, 60])
    # Where nobody tells any more, polls come back.
    assert late(follow(told, ringing, 800)[300:]) <= 0.1


def test_a_plan_is_made_now_and_then() -> None:
    intervals = intervals_of()
    plans = set()
    for number in range(1000):
        intervals.learn(10.0, 20.0, number / 100)
        plans.add(id(intervals.plan))
    assert len(plans) == 2  # none, and one in ten seconds
    first = intervals.plan
    intervals.learn(10.0, 20.0, -1e6)  # the clock was set
    assert intervals.plan is not first


def test_another_aim_is_followed_at_once_and_nothing_is_forgotten() -> None:
    intervals = intervals_of()
    follow(intervals, ringing, 500)
    punctual, learnt = intervals.plan, intervals.durations.calls
    intervals.configure(replace(SETTINGS, interval=60.0, adaptive=True).sections[1])
    assert punctual
    assert intervals.plan
    assert intervals.plan.requests < punctual.requests
    assert intervals.durations.calls == learnt


def test_a_plan_is_punctual_where_that_can_be_paid() -> None:
    lives = DurationEstimator(30.0)
    chance = random.Random(6)
    for _ in range(2000):
        lives.add(*[ringing(chance)] * 2)
    planned = plan(lives, INTERVAL, MAX_INTERVAL)
    assert planned.late <= LATE
    for _ in range(2000):
        lives.add(*[ringing(chance)] * 2)
        lives.add(*[hours(chance)] * 2)
    # Half of them live for hours. To know that within 15 s would take 400 requests for a call.
    assert plan(lives, INTERVAL, MAX_INTERVAL).requests < 50


odd = st.floats() | st.floats(0, 1000)


@given(
    st.lists(st.tuples(odd, odd, odd, st.sampled_from(["ended", "told", "outlived"])), max_size=80),
    st.floats(0.1, 86_400),
    st.floats(1, 100),
    st.floats(0, 1e9),
    st.integers(0, 10**6),
    st.floats(0, 1),
)
def test_any_history_has_a_wait(
    history: list[tuple[float, float, float, str]],
    interval: float,
    longer: float,
    age: float,
    failures: int,
    chance: float,
) -> None:
    most = min(86_400.0, interval * longer)
    intervals = intervals_of(interval=interval, max_interval=most)
    for after, by, at, what in history:
        end = (by, math.inf) if what == "outlived" else (after, by)
        intervals.learn(*end, at, notified=what == "told")
        assert intervals.plan is None or intervals.durations.calls >= ENOUGH
    assert 0 <= intervals.first(age, chance) <= most
    wait = intervals.next(age, failures, chance)
    assert min(most, interval / 2) * 0.85 <= wait <= most
    assert intervals.next(age, failures + 1, chance) >= wait
    assert not math.isnan(wait)


async def test_calls_and_messages_of_an_account_have_intervals_of_their_own(scene: Scene) -> None:
    scene.configure(adaptive=True)
    chance = random.Random(8)
    for number in range(3_000):
        # So few calls that an estimate of both kinds together would have them late.
        kind = Kind.MESSAGE if number % 20 else Kind.CALL
        name = f"{kind}-{number}"
        scene.lives[name] = chance.uniform(59, 61) if kind is Kind.CALL else chance.uniform(4, 6)
        scene.watch(name, kind=kind)
        await asyncio.sleep(2.0)
    await scene.until_finished(*scene.lives)
    for kind in Kind:
        delays = scene.delays(kind, 0.5 * now())
        assert sum(delay > INTERVAL for delay in delays) <= LATE * len(delays)
