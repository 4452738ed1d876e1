"""Counters of what clients did to the stand-in."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

# Ids beyond this many are not counted one by one, so that a long run stays small.
MAX_IDS: Final = 200_000


def count_recent(times: deque[float], now: float) -> int:
    """Drop the times that are a second ago, and return how many are left."""
    while times and times[0] <= now - 1.0:
        times.popleft()
    return len(times)


class Traffic:
    """Requests as the stand-in saw them.

    Args:
        clock: returns seconds; only differences count.

    Attributes:
        requests: number of requests by account, operation and outcome: the result code, or the
            kind of the fault that damaged or replaced the answer.
        by_reference_id: number of GetSendStatus requests by id.
        peak_rate: the most requests within any one second, by account.
        peak_open: the most requests under way at one moment, by account.
        overlapping: ids that were asked for while an earlier request for them was under way.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.by_reference_id: Counter[str] = Counter()
        self.peak_rate: Counter[str] = Counter()
        self.peak_open: Counter[str] = Counter()
        self.overlapping: set[str] = set()
        self._open: Counter[str] = Counter()
        self._open_ids: Counter[tuple[str, str]] = Counter()
        self._recent: defaultdict[str, deque[float]] = defaultdict(deque)

    @property
    def open(self) -> int:
        """Requests under way now."""
        return self._open.total()

    @contextmanager
    def request(self, account: str, reference_id: str) -> Iterator[None]:
        """Count a request, which is under way until the context ends.

        Args:
            account: the account's name.
            reference_id: as `normalize_id` returns it; empty for requests without one.
        """
        now, recent, key = self._clock(), self._recent[account], (account, reference_id)
        recent.append(now)
        self._open[account] += 1
        self.peak_rate[account] = max(self.peak_rate[account], count_recent(recent, now))
        self.peak_open[account] = max(self.peak_open[account], self._open[account])
        if reference_id:
            if reference_id in self.by_reference_id or len(self.by_reference_id) < MAX_IDS:
                self.by_reference_id[reference_id] += 1
            if key in self._open_ids:
                self.overlapping.add(reference_id)
            self._open_ids[key] += 1
        try:
            yield
        finally:
            self._open[account] -= 1
            if reference_id:
                self._open_ids[key] -= 1
                if not self._open_ids[key]:
                    del self._open_ids[key]

    def total(self, account: str | None = None, outcome: str | None = None) -> int:
        """Return the requests of an account (None: of all) with an outcome (None: any)."""
        return sum(
            count
            for (name, _, result), count in self.requests.items()
            if account in (None, name) and outcome in (None, result)
        )

    def state(self) -> dict[str, object]:
        """Return the counters, for JSON, without those of single ids."""
        return {
            "requests": {" ".join(key): count for key, count in sorted(self.requests.items())},
            "peak_rate": self.peak_rate,
            "peak_open": self.peak_open,
            "open": self.open,
            "overlapping": len(self.overlapping),
        }
