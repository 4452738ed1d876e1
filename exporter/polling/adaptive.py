"""When to ask for a call, after what was learnt of others. Pure: no I/O, no clock, no randomness.

A plan is an optimal inspection policy (R. E. Barlow, L. C. Hunter, F. Proschan, "Optimum checking
procedures", 1963), found by dynamic programming over ages: of all ways to know all but one result
in twenty in time, the one with the fewest requests.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from itertools import pairwise
from typing import Final, NamedTuple

from exporter.backoff import ExponentialBackoff
from exporter.calls import next_poll
from exporter.polling.lifetimes import WINDOW, Lifetimes

LATE: Final = 0.05
"""The share of results that may be known later than `interval` after the end."""

ENOUGH: Final = 32
"""Calls to learn from before the pace is theirs."""

EXPLORING: Final = 1 / 16
"""The share of new calls that are asked for earlier than planned, to see lives get shorter."""

_JITTER: Final = 0.1
# A plan is made for calls that are asked for when it says; jitter has some be late by a little.
_MARGIN: Final = 0.95

# A plan is made anew after so many calls, but not sooner than after so many seconds: it takes some
# thousandths of a second.
_FRESH: Final = 50
_PLAN_EVERY: Final = 10.0

# However many results somebody told of, a share of this is expected to be found by polls.
_POLLED: Final = 0.1

# What a delay of `interval` costs, in requests: of plans that are equally punctual, the one that
# knows results sooner is better.
_DELAY: Final = 0.2

# What a late result costs, in requests. Where the highest price does not make results punctual,
# because ends are spread over a long time, later ones are aimed at: `interval` is stretched.
_PRICES: Final = (0.0, *(0.25 * 1.2**n for n in range(28)))
# As to stretch it is a jump, some more late results than are aimed at are abided before that.
_ABIDED: Final = 2 * LATE
_STRETCHES: Final = tuple(1.15**n for n in range(1, 24))

# The ages of a plan: this many steps in a tolerated delay at first, then in a doubling of the age
# some nine, then one in a tolerated delay. Older calls are asked for at the growing pace.
_FINEST: Final = 6
_RELATIVE: Final = 12
_HORIZON: Final = 120


class Plan(NamedTuple):
    """When to ask for calls that have reached certain ages.

    Attributes:
        ages: where the next age begins to be meant, in seconds, ascending.
        waits: how long to wait from an age on, in seconds; one more than `ages`.
        late: the share of results that are expected to be late.
        requests: how many are expected for a call.
    """

    ages: list[float]
    waits: list[float]
    late: float
    requests: float


def plan(lives: Lifetimes, interval: float, max_interval: float, polled: float = 1.0) -> Plan:
    """Return the cheapest plan by which no more than `LATE` of all results are late.

    Where that takes too much, it is the cheapest by which no more are later than the shortest delay
    that can be had.

    Args:
        lives: what was learnt.
        interval: the delay, in seconds, above which a result is late.
        max_interval: the longest wait, in seconds.
        polled: the share of results that polls have to find, and nobody tells of.
    """
    planner = _Planner(lives, interval, max_interval, polled)
    if planner.at(_PRICES[-1]).late <= _ABIDED:
        return planner.cheapest()
    low, high = 0, len(_STRETCHES) - 1
    while low < high:
        middle = (low + high) // 2
        tried = _Planner(lives, interval * _STRETCHES[middle], max_interval, polled)
        if tried.at(_PRICES[-1]).late <= LATE:
            high = middle
        else:
            low = middle + 1
    return _Planner(lives, interval * _STRETCHES[low], max_interval, polled).cheapest()


class _Planner:
    """The tables that plans are found in: all by the number of an age."""

    def __init__(
        self, lives: Lifetimes, interval: float, max_interval: float, polled: float
    ) -> None:
        self._interval = interval
        self._longest = max_interval
        self._tolerated = min(interval * _MARGIN, max_interval)
        self._ages = ages = _ages(self._tolerated)
        shares = lives.ended(ages)
        self._open = [1 - share for share in shares]
        self._all = max(shares[-1], 1e-9)
        self._ended = ended = [polled * share for share in shares]
        # By an age, how many had ended so long before it that they are late.
        before = [max(0.0, age - self._tolerated) for age in ages]
        self._late = [polled * share for share in lives.ended(before)]
        # The time that has passed since the ends of all that have ended, over all of them.
        self._passed = passed = [0.0]
        for n in range(1, len(ages)):
            mean = (ended[n] + ended[n - 1]) / 2
            passed.append(passed[-1] + mean * (ages[n] - ages[n - 1]))
        soonest = min(interval, self._longest) / 2
        self._spans = [
            (
                bisect_right(ages, age + soonest),
                bisect_right(ages, age + self._tolerated),
                bisect_right(ages, age + self._longest),
            )
            for age in ages
        ]

    def cheapest(self) -> Plan:
        """Return the plan with the lowest price of a late result that has few enough of them."""
        low, high = 0, len(_PRICES) - 1
        best = self.at(_PRICES[high])
        while low < high:
            middle = (low + high) // 2
            tried = self.at(_PRICES[middle])
            if tried.late <= LATE:
                best, high = tried, middle
            else:
                low = middle + 1
        return best

    def at(self, price: float) -> Plan:
        """Return the best plan where each late result costs as much as `price` requests."""
        ages, ended, passed = self._ages, self._ended, self._passed
        slow = _DELAY / self._interval
        # What is still to come from a poll at an age on: as it is where none is late at that poll,
        # and with those that are.
        punctual = [0.0] * len(ages)
        tardy = [0.0] * len(ages)
        following = [-1] * len(ages)
        for n in range(len(ages) - 1, -1, -1):
            first, middle, end = self._spans[n]
            rate, missed = slow * ended[n], price * ended[n]
            cost, found = _least(punctual, ages, first, middle, rate)
            later, found_later = _least(tardy, ages, middle, end, rate)
            if later - missed < cost:
                cost, found = later - missed, found_later
            # Or not before the last age, and the better the later: all that end until then are
            # late, and each wait that reaches farther saves a part of those that would follow.
            if (beyond := ages[n] + self._longest - ages[-1]) >= 0:
                saved = self._open[-1] * beyond / self._longest
                later = slow * passed[-1] + price * ended[-1] - rate * ages[-1] - saved
                if later - missed < cost:
                    cost, found = later - missed, -1
            following[n] = found
            punctual[n] = cost + self._open[n] + rate * ages[n]
            tardy[n] = punctual[n] + price * self._late[n]
        return self._plan(following)

    def _plan(self, following: list[int]) -> Plan:
        ages, ended = self._ages, self._ended
        waits = [
            ages[m] - age if m >= 0 else self._longest
            for age, m in zip(ages, following, strict=True)
        ]
        n, late, requests = 0, 0.0, 0.0
        while (m := following[n]) >= 0:
            late += max(0.0, self._late[m] - ended[n])
            requests += self._open[n]
            n = m
        late += ended[-1] - ended[n]
        requests += self._open[n]
        means = [(before + after) / 2 for before, after in pairwise(ages)]
        return Plan(means, waits, late / self._all, requests)


def _least(
    costs: list[float], ages: list[float], first: int, end: int, rate: float
) -> tuple[float, int]:
    """Return the least of some costs less their age's share, and where it stands."""
    if first >= end:
        return math.inf, -1
    least = [cost - rate * age for cost, age in zip(costs[first:end], ages[first:end], strict=True)]
    best = min(least)
    return best, first + least.index(best)


def _ages(tolerated: float) -> list[float]:
    ages, age = [], 0.0
    while age < _HORIZON * tolerated:
        ages.append(age)
        age += min(tolerated, max(tolerated / _FINEST, age / _RELATIVE))
    return ages


class AdaptivePace:
    """Learns how long an account's calls live, and says when to ask for one.

    Until it has learnt from `ENOUGH` calls, it is the growing pace (`exporter.calls.next_poll`).

    Args:
        interval: what 95 % of the results are to be known within, after their calls' end, seconds.
        max_interval: the longest wait between two polls of a call, in seconds.

    Attributes:
        lives: what was learnt.
        plan: what follows from it; None before enough was learnt.
    """

    def __init__(self, interval: float, max_interval: float) -> None:
        self.lives = Lifetimes(2 * interval)
        self.plan: Plan | None = None
        self._told = 0.0  # the share of results that polls did not have to find
        self._fresh = 0
        self._planned_at = 0.0
        self.configure(interval, max_interval)

    def configure(self, interval: float, max_interval: float) -> None:
        """Change what is aimed at; what was learnt stays."""
        self._interval, self._max_interval = interval, max_interval
        if self.plan:
            self._make_plan()

    def first_wait(self, age: float, chance: float) -> float:
        """Return after how many seconds to ask for a call that was never asked for.

        Args:
            age: seconds since it was first watched.
            chance: a random number from 0 to 1.
        """
        if self.plan is None:
            return 0.0
        if chance < EXPLORING:
            first = self.plan.waits[0] * chance / EXPLORING
        else:
            first = self.wait(0.0, 0, (chance - EXPLORING) / (1 - EXPLORING))
        return max(0.0, first - age)

    def wait(self, age: float, failures: int, chance: float) -> float:
        """Return after how many seconds to ask for a call again.

        Args:
            age: seconds since it was first watched.
            failures: polls in a row that brought nothing; each doubles the wait.
            chance: a random number from 0 to 1.
        """
        plan = self.plan
        if plan is not None and (n := bisect_right(plan.ages, age)) < len(plan.ages):
            wait = plan.waits[n]
        else:
            wait = next_poll(age, self._interval, self._max_interval)
        if failures:
            wait = ExponentialBackoff(wait, self._max_interval).wait(failures + 1)
        wait *= 1 - _JITTER + 2 * _JITTER * chance
        return min(self._max_interval, wait)

    def ended(self, after: float, by: float, at: float, *, told: bool = False) -> None:
        """Learn from a call that has ended.

        Args:
            after: the last age, in seconds, at which it was known not to have ended.
            by: the age at which it was known to have ended.
            at: when that was, in seconds of any clock.
            told: whether somebody told of the end as it came, so that polls need not find it.
        """
        self.lives.learn(by if told else after, by)
        share = 1 / min(self.lives.calls + 1, WINDOW)
        self._told += ((1.0 if told else 0.0) - self._told) * share
        self._learnt(at)

    def outlived(self, age: float, at: float) -> None:
        """Learn from a call that was given up at an age, in seconds, before it ended."""
        self.lives.outlived(age)
        self._learnt(at)

    def recall(self, ages: Iterable[tuple[float, bool]]) -> None:
        """Learn from calls of the past, oldest first: at which age each ended or was given up."""
        for age, ended in ages:
            if ended:
                # When it was asked for before is not known. For most, it was within `interval`.
                self.lives.learn(age - self._interval, age)
            else:
                self.lives.outlived(age)
        if self.lives.calls >= ENOUGH:
            self._make_plan()

    def _learnt(self, at: float) -> None:
        self._fresh += 1
        if self.plan is None:
            if self.lives.calls < ENOUGH:
                return
        # Clocks go back, too.
        elif self._fresh < _FRESH or 0 <= at - self._planned_at < _PLAN_EVERY:
            return
        self._fresh, self._planned_at = 0, at
        self._make_plan()

    def _make_plan(self) -> None:
        polled = max(_POLLED, 1 - self._told)
        self.plan = plan(self.lives, self._interval, self._max_interval, polled)
