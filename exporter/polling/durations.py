"""How long an account's calls take, estimated from polls. Pure: no I/O, no clock, no randomness.

A poll does not see when a call ended, only that it had not at the poll before and has at this one:
the duration is known as an interval. To count it at the later end would make every duration too
long, by more the less often is polled, and polls would drift later and later. So an interval is
shared out over the bins that it covers, as the durations learnt before make likely: the expectation
step of B. W. Turnbull, "The empirical distribution function with arbitrarily grouped, censored and
truncated data" (1976), done call by call (O. Cappe, E. Moulines, "On-line expectation-maximization
algorithm for latent data models", 2009).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import Final

WINDOW: Final = 500
"""Calls that count: what was learnt before them has lost 63 % of its weight."""

# What is assumed of a new account, in calls.
_PRIOR_WEIGHT: Final = 8.0
# The share of what was assumed that a bin without calls keeps, so that it can grow again.
_FLOOR: Final = 0.001
_MAX_WEIGHT: Final = 1e100

EDGES: Final = (0.0, *(0.05 * 2 ** (n / 4) for n in range(96)))
"""Lower edges of the bins, in seconds: four in an octave. The last bin, beyond all that the
provider remembers, holds the calls that never end."""


class DurationEstimator:
    """The distribution of the time from adding a call to its end.

    Bounded in memory, and forgetful: a new call weighs 1 in `WINDOW`.

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
        self._weight = 1.0  # of a new call: grows, which is cheaper than to shrink all the others
        self.calls = 0

    def add(self, after: float, by: float) -> None:
        """Add a call that ended at an age above `after` and not above `by`, in seconds.

        Equal ages are an exact time. Ignore what is no age.
        """
        if not 0 <= by < EDGES[-1]:
            return
        after = min(after, by) if after > 0 else 0.0
        self._spread(bisect_right(EDGES, after) - 1, bisect_right(EDGES, by) - 1, after, by)

    def add_open(self, age: float) -> None:
        """Add a call that was given up at an age, in seconds, before it ended."""
        if age >= 0:
            self._spread(bisect_right(EDGES, age) - 1, len(EDGES) - 1, age, float("inf"))

    def ended(self, ages: Iterable[float]) -> list[float]:
        """Return the shares of calls that have ended by these ages, in seconds, ascending."""
        masses, reached = self._masses, [0.0, *accumulate(self._masses)]
        total = reached[-1]
        shares = []
        for age in ages:
            index = bisect_right(EDGES, age) - 1
            mass = 0.0
            if index < len(EDGES) - 1:
                part = (age - EDGES[index]) / (EDGES[index + 1] - EDGES[index])
                mass = part * masses[index]
            shares.append((reached[index] + mass) / total)
        return shares

    def _spread(self, first: int, last: int, after: float, by: float) -> None:
        masses, weight = self._masses, self._weight
        if first == last:
            masses[first] += weight
        else:
            floor = _FLOOR * self._total
            parts = [masses[index] + floor * self._prior[index] for index in range(first, last + 1)]
            parts[0] *= (EDGES[first + 1] - after) / (EDGES[first + 1] - EDGES[first])
            if last + 1 < len(EDGES):
                parts[-1] *= (by - EDGES[last]) / (EDGES[last + 1] - EDGES[last])
            scale = weight / sum(parts)
            for index, part in enumerate(parts, first):
                masses[index] += part * scale
        self.calls += 1
        self._total += weight
        if self._total > WINDOW * weight:
            self._weight = weight = self._total / (WINDOW - 1)
            if weight > _MAX_WEIGHT:
                self._masses = [mass / weight for mass in masses]
                self._total /= weight
                self._weight = 1.0
