"""Poll intervals, learnt from past calls. Pure: no I/O, no clock, no randomness."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

from exporter.backoff import ExponentialBackoff
from exporter.config import PollingConfig

WINDOW: Final = 500
"""Number of calls after which older calls have lost 63 % of their weight."""

LATE: Final = 0.05
"""The share of results that may be known more than `interval` after the end of the call."""

ENOUGH: Final = 32
"""Number of calls to learn from before intervals become adaptive."""

EXPLORING: Final = 1 / 16
"""The share of new calls to poll earlier than planned, to notice if calls become shorter."""

EDGES: Final = (0.0, *(0.05 * 2 ** (n / 4) for n in range(96)))
"""Lower edges of the bins of durations, in seconds, four per octave. The last bin has the calls
that never end: it starts after the provider has forgotten a call."""

# The weight of the initial assumption, in calls.
_PRIOR_WEIGHT: Final = 8.0
# The share of the initial assumption that an empty bin keeps, so that it can grow again.
_FLOOR: Final = 0.001

_JITTER: Final = 0.1
# Plans ignore jitter: aim a little earlier.
_MARGIN: Final = 0.95

# A plan takes some milliseconds: make one per so many calls, and at most one in so many seconds.
_PLAN_AFTER: Final = 50
_PLAN_INTERVAL: Final = 10.0

# The minimum share of ends that polls are expected to find, even if callbacks report all of them.
_MIN_POLLED: Final = 0.1

# The cost of a delay of `interval`, in requests: prefers the faster of equally punctual plans.
_DELAY_PRICE: Final = 0.2

# Pairs: the cost of a late result, in requests, and the factor for `interval`. If the highest cost
# does not make results punctual, because ends are spread over a long time, plan for a longer delay.
# Tolerate some more late results before that, because the first factor is a large step.
_AIMS: Final = tuple((0.25 * 1.2**n, 1.0) for n in range(28))
_STRETCHED: Final = tuple((_AIMS[-1][0], 1.15**n) for n in range(1, 24))
_TOLERATED_LATE: Final = 2 * LATE

# The ages of a plan: first this many steps per tolerated delay, then about nine per doubling of the
# age, then one per tolerated delay. Older calls have growing intervals.
_FINEST: Final = 6
_RELATIVE: Final = 12
_HORIZON: Final = 120


class DurationEstimator:
    """The distribution of the time from adding a call to its end, estimated from polls.

    Polls show only that a call ended between two polls: the duration is an interval. Using its
    upper end would overestimate durations, and polls would drift later and later. So each interval
    is distributed over its bins in proportion to the durations learnt so far: the expectation step
    of B. W. Turnbull, "The empirical distribution function with arbitrarily grouped, censored and
    truncated data" (1976), call by call (O. Cappe, E. Moulines, "On-line expectation-maximization
    algorithm for latent data models", 2009).

    Args:
        median: the initial assumption, in seconds.

    Attributes:
        calls: number of added calls.
    """

    def __init__(self, median: float) -> None:
        # A Lomax distribution: flat at first, with a long tail. Without other evidence, all moments
        # of an interval are about equally likely.
        reached = [edge / (median + edge) for edge in EDGES] + [1.0]
        self._prior = [after - before for before, after in pairwise(reached)]
        self._masses = [_PRIOR_WEIGHT * share for share in self._prior]
        self._total = _PRIOR_WEIGHT
        self.calls = 0

    def add(self, after: float, by: float) -> None:
        """Add a call that ended after the age `after` and not later than `by`, in seconds.

        Equal ages are an exact time. An infinite `by` means that the call expired at `after`.
        Invalid ages are ignored.
        """
        if not (0 <= by < EDGES[-1] or by == math.inf):
            return
        after = min(after, by) if after > 0 else 0.0
        first, last = bisect_right(EDGES, after) - 1, bisect_right(EDGES, by) - 1
        masses = self._masses
        if first == last:
            masses[first] += 1
        else:
            floor = _FLOOR * self._total
            parts = [masses[index] + floor * self._prior[index] for index in range(first, last + 1)]
            parts[0] *= (EDGES[first + 1] - after) / (EDGES[first + 1] - EDGES[first])
            if last + 1 < len(EDGES):
                parts[-1] *= (by - EDGES[last]) / (EDGES[last + 1] - EDGES[last])
            whole = sum(parts)
            for index, part in enumerate(parts, first):
                masses[index] += part / whole
        self.calls += 1
        self._total += 1
        if self._total > WINDOW:  # forget
            kept = (WINDOW - 1) / self._total
            self._masses = [kept * mass for mass in masses]
            self._total = WINDOW - 1

    def ended(self, ages: Iterable[float]) -> list[float]:
        """Return the share of calls that have ended by each age, in seconds."""
        masses, reached = self._masses, [0.0, *accumulate(self._masses)]
        shares = []
        for age in ages:
            index = bisect_right(EDGES, age) - 1
            mass = 0.0
            if index < len(EDGES) - 1:
                part = (age - EDGES[index]) / (EDGES[index + 1] - EDGES[index])
                mass = part * masses[index]
            shares.append((reached[index] + mass) / reached[-1])
        return shares


class Plan(NamedTuple):
    """Waits between polls by age of the call.

    Attributes:
        ages: where each wait after the first begins to apply, in seconds, ascending.
        waits: seconds to wait; one more than `ages`.
        late: the expected share of late results.
        requests: the expected number of polls per call.
    """

    ages: list[float]
    waits: list[float]
    late: float
    requests: float


def plan(
    durations: DurationEstimator, interval: float, max_interval: float, polled: float = 1.0
) -> Plan:
    """Return the cheapest plan with a share of late results of at most `LATE`.

    A result is late if its delay is more than `interval` seconds. If that takes too many requests,
    plan for the shortest delay that does not. Polls have to find the share `polled` of the ends.
    """

    def planned(price: float, stretch: float) -> Plan:
        return _cheapest(durations, interval * stretch, max_interval, polled, price)

    aims = _AIMS if planned(*_AIMS[-1]).late <= _TOLERATED_LATE else _STRETCHED
    # The first aim with few enough late results, or the last. Their share falls from aim to aim.
    punctual = bisect_left(aims, 1, hi=len(aims) - 1, key=lambda aim: planned(*aim).late <= LATE)
    return planned(*aims[punctual])


def _cheapest(
    durations: DurationEstimator, interval: float, max_interval: float, polled: float, price: float
) -> Plan:
    """Return the best plan if a late result costs as much as `price` requests.

    An optimal inspection policy (R. E. Barlow, L. C. Hunter, F. Proschan, "Optimum checking
    procedures", 1963), found by dynamic programming over ages.
    """
    tolerated = min(interval * _MARGIN, max_interval)
    ages = [0.0]
    while ages[-1] < _HORIZON * tolerated:
        ages.append(ages[-1] + min(tolerated, max(tolerated / _FINEST, ages[-1] / _RELATIVE)))
    last, slow = len(ages) - 1, _DELAY_PRICE / interval
    shares = durations.ended(ages)
    ended = [polled * share for share in shares]
    # The share of ends that are late at each age.
    before = durations.ended([max(0.0, age - tolerated) for age in ages])
    late = [polled * share for share in before]
    # The remaining cost after a poll at each age: requests, late results and delays, without the
    # costs that all plans share.
    to_come, following = [0.0] * len(ages), [last] * last
    for n in range(last - 1, -1, -1):
        age, found = ages[n], ended[n]
        end = max(n + 2, bisect_right(ages, age + max_interval))
        first = min(end - 1, bisect_right(ages, age + min(interval, max_interval) / 2))
        costs = [
            cost - slow * found * at + (price * (tardy - found) if tardy > found else 0.0)
            for cost, at, tardy in zip(
                to_come[first:end], ages[first:end], late[first:end], strict=True
            )
        ]
        least = min(costs)
        following[n] = first + costs.index(least)
        to_come[n] = 1 - shares[n] + least + slow * found * age
    n, missed, requests = 0, 0.0, 1.0
    while n < last:
        m = following[n]
        missed += max(0.0, late[m] - ended[n])
        requests += 1 - shares[m]
        n = m
    waits = [ages[m] - age for m, age in zip(following, ages, strict=False)] + [max_interval]
    means = [(lower + upper) / 2 for lower, upper in pairwise(ages)]
    return Plan(means, waits, missed / max(shares[-1], 1e-9), requests)


class PollIntervals:
    """The poll intervals of the calls of an account, or of its messages: growing or adaptive.

    Growing: poll a call every `interval` until it is ten intervals old. After that, each interval
    is 1.5 times the previous one. The interval depends only on the age, so a restart or a changed
    configuration continues the series.

    Adaptive: learn how long they take, and poll when they have probably ended, so that 95 % of
    results are known `interval` after the end. The first `ENOUGH` have growing intervals.

    Attributes:
        durations: the durations of past calls.
        plan: the current plan; None before `ENOUGH` calls.
    """

    def __init__(self, polling: PollingConfig) -> None:
        self._notified = 0.0  # the share of ends that callbacks reported
        self._since_plan = 0  # calls
        self._planned_at = 0.0
        self._adaptive = False
        self.configure(polling)

    def configure(self, polling: PollingConfig) -> None:
        """Change the settings. Adaptive intervals keep what they have learnt."""
        self._interval, self._max_interval = polling.interval, polling.max_interval
        adaptive = polling.pace == "adaptive"
        if not (adaptive and self._adaptive):
            self.durations = DurationEstimator(2 * self._interval)
            self.plan: Plan | None = None
            self._adaptive = adaptive
        elif self.plan:
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

    def next(self, age: float, failures: int, chance: float) -> float:
        """Return the seconds to the next poll of a call, by its age in seconds.

        Each consecutive failed poll doubles the wait. `chance` is a random number from 0 to 1, for
        jitter.
        """
        plan = self.plan
        if plan is not None and (n := bisect_right(plan.ages, age)) < len(plan.ages):
            wait = plan.waits[n]
        else:
            steady = 10 * self._interval
            wait = self._interval if age < steady else 1.5 * self._interval + (age - steady) / 2
        wait = min(self._max_interval, wait)
        if failures:
            wait = ExponentialBackoff(wait, self._max_interval).wait(failures + 1)
        return min(self._max_interval, wait * (1 - _JITTER + 2 * _JITTER * chance))

    def learn(self, after: float, by: float, at: float, *, notified: bool = False) -> None:
        """Learn from a call that has ended; see `DurationEstimator.add`.

        `at` is the time when the end was found, in seconds of any clock. `notified`: a callback
        reported it, not a poll.
        """
        if not self._adaptive:
            return
        self.durations.add(by if notified else after, by)
        if by < math.inf:
            share = 1 / min(self.durations.calls + 1, WINDOW)
            self._notified += ((1.0 if notified else 0.0) - self._notified) * share
        self._since_plan += 1
        # Clocks can be set back.
        recent = self._since_plan < _PLAN_AFTER or 0 <= at - self._planned_at < _PLAN_INTERVAL
        if self.durations.calls >= ENOUGH if self.plan is None else not recent:
            self._since_plan, self._planned_at = 0, at
            self._make_plan()

    def learn_past(self, ages: Iterable[tuple[float, bool]]) -> None:
        """Learn from past calls, oldest first: the final age, and whether they ended or expired."""
        for age, ended in ages if self._adaptive else ():
            # The time of the poll before is unknown; usually it was within `interval`.
            self.durations.add(*((age - self._interval, age) if ended else (age, math.inf)))
        if self.durations.calls >= ENOUGH:
            self._make_plan()

    def _make_plan(self) -> None:
        polled = max(_MIN_POLLED, 1 - self._notified)
        self.plan = plan(self.durations, self._interval, self._max_interval, polled)
