"""When to poll a call, after what was learnt of others. Pure: no I/O, no clock, no randomness.

A plan is an optimal inspection policy (R. E. Barlow, L. C. Hunter, F. Proschan, "Optimum checking
procedures", 1963), found by dynamic programming over ages: of all ways to know all but one result
in twenty in time, the one with the fewest requests.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Final, NamedTuple

from exporter.backoff import ExponentialBackoff
from exporter.polling.durations import WINDOW, DurationEstimator

LATE: Final = 0.05
"""The share of results that may be known later than `interval` after the call's end."""

ENOUGH: Final = 32
"""Calls to learn from before intervals are adaptive."""

EXPLORING: Final = 1 / 16
"""The share of new calls that are polled earlier than planned, to notice that calls get shorter."""

_JITTER: Final = 0.1
# A plan is made for calls that are polled when it says; jitter has some be late by a little.
_MARGIN: Final = 0.95

# A plan takes some milliseconds: make one after so many calls, but not within so many seconds.
_PLAN_AFTER: Final = 50
_PLAN_INTERVAL: Final = 10.0

# However many ends callbacks report, a share of this is expected to be found by polls.
_MIN_POLLED: Final = 0.1

# What a delay of `interval` costs, in requests: of plans that are equally punctual, the one that
# knows results sooner is better.
_DELAY_PRICE: Final = 0.2

# What a late result costs, in requests. Where the highest price does not make results punctual,
# because ends are spread over a long time, plan for a longer delay: `interval` is stretched.
_LATE_PRICES: Final = (0.0, *(0.25 * 1.2**n for n in range(28)))
# As stretching is a jump, tolerate some more late results than planned for before it.
_TOLERATED_LATE: Final = 2 * LATE
_STRETCHES: Final = tuple(1.15**n for n in range(1, 24))

# The ages of a plan: this many steps in a tolerated delay at first, then in a doubling of the age
# some nine, then one in a tolerated delay. Older calls are polled at growing intervals.
_FINEST: Final = 6
_RELATIVE: Final = 12
_HORIZON: Final = 120


class Plan(NamedTuple):
    """When to poll calls of certain ages.

    Attributes:
        ages: where the next wait begins to apply, in seconds, ascending.
        waits: seconds to wait; one more than `ages`.
        late: the share of results that are expected to be late.
        requests: how many are expected for a call.
    """

    ages: list[float]
    waits: list[float]
    late: float
    requests: float


def plan(
    durations: DurationEstimator, interval: float, max_interval: float, polled: float = 1.0
) -> Plan:
    """Return the cheapest plan by which no more than `LATE` of all results are late.

    Where that takes too many requests, plan for the shortest delay that does not.

    Args:
        durations: what was learnt.
        interval: the delay, in seconds, above which a result is late.
        max_interval: the longest wait, in seconds.
        polled: the share of ends that polls have to find.
    """

    def planner(stretch: float) -> _Planner:
        return _Planner(durations, interval * stretch, max_interval, polled)

    def lowest_late(stretch: float) -> float:
        return planner(stretch).at(_LATE_PRICES[-1]).late

    stretch = 1.0
    if lowest_late(stretch) > _TOLERATED_LATE:
        stretch = _first(_STRETCHES, lambda tried: lowest_late(tried) <= LATE)
    punctual = planner(stretch)
    # Of a late result: the lowest price that makes few enough of them.
    return punctual.at(_first(_LATE_PRICES, lambda price: punctual.at(price).late <= LATE))


def _first(values: tuple[float, ...], holds: Callable[[float], bool]) -> float:
    """Return the first value for which a condition holds, as for all that follow; else the last."""
    return values[bisect_left(values, 1, hi=len(values) - 1, key=holds)]


class _Planner:
    """The tables in which plans are found: all by the index of an age."""

    def __init__(
        self, durations: DurationEstimator, interval: float, max_interval: float, polled: float
    ) -> None:
        self._interval = interval
        self._longest = max_interval
        tolerated = min(interval * _MARGIN, max_interval)
        self._ages = ages = _ages(tolerated)
        shares = durations.ended(ages)
        self._open = [1 - share for share in shares]
        self._all = max(shares[-1], 1e-9)
        self._ended = ended = [polled * share for share in shares]
        # How many had ended so long before an age that they are late.
        before = [max(0.0, age - tolerated) for age in ages]
        self._late = [polled * share for share in durations.ended(before)]
        # The time that has passed since their ends, summed over all that have ended.
        self._passed = passed = [0.0]
        for n in range(1, len(ages)):
            mean = (ended[n] + ended[n - 1]) / 2
            passed.append(passed[-1] + mean * (ages[n] - ages[n - 1]))
        waits = min(interval, max_interval) / 2, tolerated, max_interval
        self._spans = [[bisect_right(ages, age + wait) for wait in waits] for age in ages]

    def at(self, price: float) -> Plan:
        """Return the best plan where each late result costs as much as `price` requests."""
        ages, ended, passed = self._ages, self._ended, self._passed
        slow = _DELAY_PRICE / self._interval
        # The cost still to come from a poll at an age on, where no result is late at that poll, and
        # with those that are.
        punctual = [0.0] * len(ages)
        tardy = [0.0] * len(ages)
        following = [-1] * len(ages)
        for n in range(len(ages) - 1, -1, -1):
            first, middle, end = self._spans[n]
            rate, missed = slow * ended[n], price * ended[n]
            cost, next_age = _least(punctual, ages, first, middle, rate)
            later, later_age = _least(tardy, ages, middle, end, rate)
            if later - missed < cost:
                cost, next_age = later - missed, later_age
            # Or not before the last age, and the better the later: all that end until then are
            # late, and each wait that reaches farther saves a part of those that would follow.
            if (beyond := ages[n] + self._longest - ages[-1]) >= 0:
                saved = self._open[-1] * beyond / self._longest
                later = slow * passed[-1] + price * ended[-1] - rate * ages[-1] - saved
                if later - missed < cost:
                    cost, next_age = later - missed, -1
            following[n] = next_age
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
    """Return the least of some costs less their age's share, and its index."""
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


class GrowingIntervals:
    """Poll a call every `interval` until it is ten intervals old, then less and less often.

    From then on its interval grows by half each time: a geometric series, whose next member follows
    from the age alone, so that a restart or a changed configuration continues it.

    Args:
        interval: seconds.
        max_interval: the longest wait between two polls of a call, in seconds.
    """

    def __init__(self, interval: float, max_interval: float) -> None:
        self._interval, self._max_interval = interval, max_interval

    def first(self, age: float, chance: float) -> float:
        """Return the seconds to the first poll of a new call; see `next`."""
        del age, chance
        return 0.0

    def next(self, age: float, failures: int, chance: float) -> float:
        """Return the seconds to the next poll of a call.

        Args:
            age: seconds since the call was added.
            failures: polls in a row that failed; each doubles the wait.
            chance: a random number from 0 to 1, for the jitter.
        """
        wait = self._wait(age)
        if failures:
            wait = ExponentialBackoff(wait, self._max_interval).wait(failures + 1)
        wait *= 1 - _JITTER + 2 * _JITTER * chance
        return min(self._max_interval, wait)

    def _wait(self, age: float) -> float:
        steady = 10 * self._interval
        wait = self._interval if age < steady else 1.5 * self._interval + (age - steady) / 2
        return min(self._max_interval, wait)


class AdaptiveIntervals(GrowingIntervals):
    """Learn how long an account's calls take, and poll when they may have ended.

    Until it has learnt from `ENOUGH` calls, intervals are growing.

    Args:
        interval: 95 % of the results are to be known within it, after the calls' end, in seconds.
        max_interval: the longest wait between two polls of a call, in seconds.

    Attributes:
        durations: what was learnt.
        plan: what follows from it; None before enough was learnt.
    """

    def __init__(self, interval: float, max_interval: float) -> None:
        super().__init__(interval, max_interval)
        self.durations = DurationEstimator(2 * interval)
        self.plan: Plan | None = None
        self._notified = 0.0  # the share of results that polls did not have to find
        self._since_plan = 0  # calls
        self._planned_at = 0.0

    def configure(self, interval: float, max_interval: float) -> None:
        """Change the intervals; what was learnt stays."""
        self._interval, self._max_interval = interval, max_interval
        if self.plan:
            self._make_plan()

    def first(self, age: float, chance: float) -> float:
        """Return the seconds to the first poll of a new call; see `next`."""
        if self.plan is None:
            return 0.0
        if chance < EXPLORING:
            wait = self.plan.waits[0] * chance / EXPLORING
        else:
            wait = self.next(0.0, 0, (chance - EXPLORING) / (1 - EXPLORING))
        return max(0.0, wait - age)

    def learn(self, after: float, by: float, at: float, *, notified: bool = False) -> None:
        """Learn from a call that has ended.

        Args:
            after: the last age, in seconds, at which it was known not to have ended.
            by: the age at which it was known to have ended.
            at: when that was, in seconds of any clock.
            notified: whether a callback reported the end, so that polls need not find it.
        """
        self.durations.add(by if notified else after, by)
        share = 1 / min(self.durations.calls + 1, WINDOW)
        self._notified += ((1.0 if notified else 0.0) - self._notified) * share
        self._plan_again(at)

    def learn_open(self, age: float, at: float) -> None:
        """Learn from a call that was given up at an age, in seconds, before it ended."""
        self.durations.add_open(age)
        self._plan_again(at)

    def learn_past(self, ages: Iterable[tuple[float, bool]]) -> None:
        """Learn from calls of the past, oldest first: at which age each ended or was given up."""
        for age, ended in ages:
            if ended:
                # When it was polled before is not known. For most, it was within `interval`.
                self.durations.add(age - self._interval, age)
            else:
                self.durations.add_open(age)
        if self.durations.calls >= ENOUGH:
            self._make_plan()

    def _wait(self, age: float) -> float:
        plan = self.plan
        if plan is not None and (n := bisect_right(plan.ages, age)) < len(plan.ages):
            return plan.waits[n]
        return super()._wait(age)

    def _plan_again(self, at: float) -> None:
        self._since_plan += 1
        if self.plan is None:
            if self.durations.calls < ENOUGH:
                return
        # Clocks can be set back.
        elif self._since_plan < _PLAN_AFTER or 0 <= at - self._planned_at < _PLAN_INTERVAL:
            return
        self._since_plan, self._planned_at = 0, at
        self._make_plan()

    def _make_plan(self) -> None:
        polled = max(_MIN_POLLED, 1 - self._notified)
        self.plan = plan(self.durations, self._interval, self._max_interval, polled)
