"""When to poll a call, after what was learnt of others. Pure: no I/O, no clock, no randomness."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

from exporter.backoff import ExponentialBackoff

WINDOW: Final = 500
"""Calls that count: what was learnt before them has lost 63 % of its weight."""

LATE: Final = 0.05
"""The share of results that may be known later than `interval` after the call's end."""

ENOUGH: Final = 32
"""Calls to learn from before intervals are adaptive."""

EXPLORING: Final = 1 / 16
"""The share of new calls that are polled earlier than planned, to notice that calls get shorter."""

EDGES: Final = (0.0, *(0.05 * 2 ** (n / 4) for n in range(96)))
"""Lower edges of the bins of durations, in seconds: four in an octave. The last bin, beyond all
that the provider remembers, holds the calls that never end."""

# What is assumed of a new account, in calls.
_PRIOR_WEIGHT: Final = 8.0
# The share of what was assumed that a bin without calls keeps, so that it can grow again.
_FLOOR: Final = 0.001

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

# What a late result costs, in requests, and by how much `interval` is stretched: where the highest
# price does not make results punctual, because ends are spread over a long time, plan for a longer
# delay. As stretching is a jump, some more late results are tolerated before it.
_AIMS: Final = tuple((0.25 * 1.2**n, 1.0) for n in range(28))
_STRETCHED: Final = tuple((_AIMS[-1][0], 1.15**n) for n in range(1, 24))
_TOLERATED_LATE: Final = 2 * LATE

# The ages of a plan: this many steps in a tolerated delay at first, then in a doubling of the age
# some nine, then one in a tolerated delay. Older calls are polled at growing intervals.
_FINEST: Final = 6
_RELATIVE: Final = 12
_HORIZON: Final = 120


class DurationEstimator:
    """The distribution of the time from adding a call to its end, estimated from polls.

    A poll sees only that a call had not ended at the poll before and has at this one: the duration
    is known as an interval. Counted at the later end, every duration would be too long, the more
    the less often is polled, and polls would drift later and later. So an interval is shared out
    over the bins that it covers, as the durations learnt before make likely: the expectation step
    of B. W. Turnbull, "The empirical distribution function with arbitrarily grouped, censored and
    truncated data" (1976), done call by call (O. Cappe, E. Moulines, "On-line
    expectation-maximization algorithm for latent data models", 2009).

    Args:
        median: assumed at first, in seconds.

    Attributes:
        calls: how many calls were added.
    """

    def __init__(self, median: float) -> None:
        # Flat where calls are short, with a long tail (a Lomax distribution): within an interval
        # without other evidence, all moments are about equally likely.
        reached = [edge / (median + edge) for edge in EDGES] + [1.0]
        self._prior = [after - before for before, after in pairwise(reached)]
        self._masses = [_PRIOR_WEIGHT * share for share in self._prior]
        self._total = _PRIOR_WEIGHT
        self.calls = 0

    def add(self, after: float, by: float) -> None:
        """Add a call that ended at an age above `after` and not above `by`, in seconds.

        Equal ages are an exact time. Ignore what is no age.
        """
        if 0 <= by < EDGES[-1]:
            self._spread(min(after, by) if after > 0 else 0.0, by)

    def add_open(self, age: float) -> None:
        """Add a call that was given up at an age, in seconds, before it ended."""
        if age >= 0:
            self._spread(age, float("inf"))

    def ended(self, ages: Iterable[float]) -> list[float]:
        """Return the shares of calls that have ended by these ages, in seconds."""
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

    def _spread(self, after: float, by: float) -> None:
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

    def planned(price: float, stretch: float) -> Plan:
        return _cheapest(durations, interval * stretch, max_interval, polled, price)

    aims = _AIMS if planned(*_AIMS[-1]).late <= _TOLERATED_LATE else _STRETCHED
    # The first that makes few enough results late, as do all that follow; else the last.
    punctual = bisect_left(aims, 1, hi=len(aims) - 1, key=lambda aim: planned(*aim).late <= LATE)
    return planned(*aims[punctual])


def _cheapest(
    durations: DurationEstimator, interval: float, max_interval: float, polled: float, price: float
) -> Plan:
    """Return the best plan where each late result costs as much as `price` requests.

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
    # How many had ended so long before an age that they are late.
    before = durations.ended([max(0.0, age - tolerated) for age in ages])
    late = [polled * share for share in before]
    # The cost still to come from a poll at an age on: of requests, late results, and delays, but
    # for what is the same in all plans.
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
    """When to poll the calls of an account: growing or adaptive intervals.

    Growing: poll a call every `interval` until it is ten intervals old, then less and less often.
    From then on its interval grows by half each time: a geometric series, whose next member follows
    from the age alone, so that a restart or a changed configuration continues it.

    Adaptive: learn how long an account's calls take, and poll when they may have ended. Until it
    has learnt from `ENOUGH` calls, intervals are growing.

    Args:
        interval: seconds. Adaptive: 95 % of the results are to be known within it, after the end.
        max_interval: the longest wait between two polls of a call, in seconds.
        adaptive: whether to learn.

    Attributes:
        durations: what was learnt.
        plan: what follows from it; None before enough was learnt.
    """

    def __init__(self, interval: float, max_interval: float, *, adaptive: bool) -> None:
        self.durations = DurationEstimator(2 * interval)
        self.plan: Plan | None = None
        self._notified = 0.0  # the share of results that polls did not have to find
        self._since_plan = 0  # calls
        self._planned_at = 0.0
        self._adaptive = adaptive
        self._interval, self._max_interval = interval, max_interval

    def configure(self, interval: float, max_interval: float, *, adaptive: bool) -> None:
        """Change the intervals; what was learnt stays as long as they are adaptive."""
        self._interval, self._max_interval = interval, max_interval
        if not (adaptive and self._adaptive):
            self.durations, self.plan = DurationEstimator(2 * interval), None
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
        """Return the seconds to the next poll of a call.

        Args:
            age: seconds since the call was added.
            failures: polls in a row that failed; each doubles the wait.
            chance: a random number from 0 to 1, for the jitter.
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
        """Learn from a call that has ended.

        Args:
            after: the last age, in seconds, at which it was known not to have ended.
            by: the age at which it was known to have ended.
            at: when that was, in seconds of any clock.
            notified: whether a callback reported the end, so that polls need not find it.
        """
        if self._adaptive:
            self.durations.add(by if notified else after, by)
            share = 1 / min(self.durations.calls + 1, WINDOW)
            self._notified += ((1.0 if notified else 0.0) - self._notified) * share
            self._plan_again(at)

    def learn_open(self, age: float, at: float) -> None:
        """Learn from a call that was given up at an age, in seconds, before it ended."""
        if self._adaptive:
            self.durations.add_open(age)
            self._plan_again(at)

    def learn_past(self, ages: Iterable[tuple[float, bool]]) -> None:
        """Learn from calls of the past, oldest first: at which age each ended or was given up."""
        for age, ended in ages if self._adaptive else ():
            if ended:
                # When it was polled before is not known. For most, it was within `interval`.
                self.durations.add(age - self._interval, age)
            else:
                self.durations.add_open(age)
        if self.durations.calls >= ENOUGH:
            self._make_plan()

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
