"""How long calls live, learnt from polls. Pure: no I/O, no clock, no randomness.

A poll does not see when a call ended, only that it had not at the poll before and has at this one:
the life is known as an interval. To count it at the later end would make every life too long, by
more the less often is polled, and polls would drift later and later. So an interval is shared out
over the bins that it covers, as the lives learnt before make likely: the step of
expectation of B. W. Turnbull, "The empirical distribution function with arbitrarily grouped,
censored and truncated data" (1976), done call by call (O. Cappe, E. Moulines, "On-line
expectation-maximization algorithm for latent data models", 2009).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import Final

WINDOW: Final = 500
"""Calls that count: what was learnt before them has lost 63 % of its weight."""

# What is believed of a new account, and how many calls that is worth.
_PRIOR_WEIGHT: Final = 8.0
# A bin that nothing fell into for long keeps this share of what was believed at first, so that it
# can come back.
_FLOOR: Final = 0.001
_LARGEST: Final = 1e100

EDGES: Final = (0.0, *(0.05 * 2 ** (n / 4) for n in range(96)))
"""Where the bins of lives begin, in seconds: four in an octave. The last, beyond all that the
provider remembers, holds the calls that never end."""


class Lifetimes:
    """The distribution of the lives of an account's calls, from their first watch to their end.

    Its memory is bounded, and it forgets: a new call weighs 1 in `WINDOW`.

    Args:
        median: what half of the lives are believed to be shorter than at first, in seconds.

    Attributes:
        calls: how many lives were learnt.
    """

    def __init__(self, median: float) -> None:
        # Flat where lives are short, with a long tail (a Lomax distribution): within an interval
        # that says nothing else, no moment is likelier than another.
        reached = [edge / (median + edge) for edge in EDGES] + [1.0]
        self._prior = [after - before for before, after in pairwise(reached)]
        self._masses = [_PRIOR_WEIGHT * share for share in self._prior]
        self._total = _PRIOR_WEIGHT
        self._weight = 1.0  # of a new call: grows, which is cheaper than to have all others shrink
        self.calls = 0

    def learn(self, after: float, by: float) -> None:
        """Take in a call that ended at an age above `after`, and not above `by`, in seconds.

        Both are the same where the end is known exactly. Anything that is no age is passed over.
        """
        if not 0 <= by < EDGES[-1]:
            return
        after = min(after, by) if after > 0 else 0.0
        first, last = bisect_right(EDGES, after) - 1, bisect_right(EDGES, by) - 1
        self._share(first, last, after, by)

    def outlived(self, age: float) -> None:
        """Take in a call that had not ended at this age, in seconds, and was given up."""
        if not age >= 0:
            return
        first = bisect_right(EDGES, age) - 1
        self._share(first, len(EDGES) - 1, age, float("inf"))

    def ended(self, ages: Iterable[float]) -> list[float]:
        """Return the shares of calls that have ended by these ages, in seconds, ascending."""
        masses, reached = self._masses, [0.0, *accumulate(self._masses)]
        total = reached[-1]
        shares = []
        for age in ages:
            found = bisect_right(EDGES, age) - 1
            if found == len(EDGES) - 1:
                shares.append(reached[found] / total)
                continue
            part = (age - EDGES[found]) / (EDGES[found + 1] - EDGES[found])
            shares.append((reached[found] + part * masses[found]) / total)
        return shares

    def _share(self, first: int, last: int, after: float, by: float) -> None:
        masses, weight = self._masses, self._weight
        if first == last:
            masses[first] += weight
        else:
            floor = _FLOOR * self._total
            parts = [masses[found] + floor * self._prior[found] for found in range(first, last + 1)]
            parts[0] *= (EDGES[first + 1] - after) / (EDGES[first + 1] - EDGES[first])
            if last + 1 < len(EDGES):
                parts[-1] *= (by - EDGES[last]) / (EDGES[last + 1] - EDGES[last])
            scale = weight / sum(parts)
            for found, part in enumerate(parts, first):
                masses[found] += part * scale
        self.calls += 1
        self._total += weight
        if self._total > WINDOW * weight:
            self._weight = weight = self._total / (WINDOW - 1)
            if weight > _LARGEST:
                self._masses = [mass / weight for mass in masses]
                self._total /= weight
                self._weight = 1.0
