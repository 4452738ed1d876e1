"""Which call is due: a timing wheel, whose cost for a call does not grow with their number."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import Final

from exporter.calls import WatchedCall

TICK: Final = 0.05
"""Seconds; calls that are due within the same tick are due together."""


class _Bucket(list[WatchedCall]):
    """The calls that are due in a tick, which they all hold as the same object."""

    __slots__ = ("tick",)

    def __init__(self, tick: int) -> None:
        super().__init__()
        self.tick = tick


class Schedule:
    """The calls of one account in the order in which they are due.

    A call stands in it at most once: the entry that agrees with its `tick`. Others are left over
    from a call that was moved or taken out, and are skipped when their time comes.
    """

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}
        self._ticks: list[int] = []  # a heap of the buckets' keys
        self._due: deque[WatchedCall] = deque()
        self._due_tick = -1

    def add(self, call: WatchedCall, due: float) -> None:
        """Put a call in, or move it; `due` in seconds of the monotonic clock."""
        tick = int(due / TICK)
        if tick == call.tick:
            return
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = _Bucket(tick)
            heappush(self._ticks, tick)
        # Not the `tick` of above: a number of its own would be a tenth of what a call takes.
        call.tick = bucket.tick
        bucket.append(call)

    def discard(self, call: WatchedCall) -> None:
        """Take a call out."""
        call.tick = -1

    def pop(self, now: float) -> tuple[WatchedCall, float] | None:
        """Take out the call that has been due for longest, and say since when.

        Returns None where none is due; `next_due` says when one is.
        """
        while True:
            while self._due:
                call = self._due.popleft()
                if call.tick == self._due_tick:
                    call.tick = -1
                    return call, self._due_tick * TICK
            if not self._ticks or self._ticks[0] * TICK > now:
                return None
            self._due_tick = heappop(self._ticks)
            self._due.extend(self._buckets.pop(self._due_tick))

    def next_due(self) -> float | None:
        """Return when the next call is due, in seconds of the monotonic clock; None for never."""
        if self._due:
            return self._due_tick * TICK
        return self._ticks[0] * TICK if self._ticks else None

    def overdue(self, now: float) -> tuple[int, float]:
        """Return how many calls are due, and for how many seconds the first of them is."""
        ticks = [tick for tick in self._ticks if tick * TICK <= now]
        calls = sum(call.tick == tick for tick in ticks for call in self._buckets[tick])
        calls += sum(call.tick == self._due_tick for call in self._due)
        first = self.next_due()
        return calls, max(0.0, now - first) if calls and first is not None else 0.0
