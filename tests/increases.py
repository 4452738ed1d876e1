"""What Prometheus counts of what it scrapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final


class Increases:
    """The sums of `increase()` over everything that was scraped, by metric.

    A series that is new counts from its first value on: only one that was first seen at 0 misses
    nothing. A value that is less than before is a reset, and all of it is new. A series that
    disappears and returns is the same one.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[str, ...], float] = {}
        self.sums: Final = Counter[str]()

    def scrape(self, series: Mapping[tuple[str, ...], float]) -> None:
        """Take the values of all series, by their metric and the values of their labels."""
        for key, value in series.items():
            last = self._last.get(key, value)
            self.sums[key[0]] += int(value - last if value >= last else value)
        self._last |= series
