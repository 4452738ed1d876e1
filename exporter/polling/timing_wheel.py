"""Which call is polled next: a timing wheel for calls to come, fair queues for those that are due.

The cost for a call does not grow with the number of calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from operator import attrgetter
from typing import Final, NamedTuple

from exporter.calls import CallState, WatchedCall
from exporter.polling.fair_queue import FairQueue

TICK: Final = 0.05
"""Seconds; calls that are due within the same tick are due together."""

FAILING: Final = 4
"""The priority from which on calls are polled after all others: they failed the last time."""

# Of ten turns, calls that failed get one while others wait.
_FAILING_EVERY: Final = 10

# Entries of calls that were moved or removed, beyond which the queues are rebuilt.
_MAX_LEFT_OVER: Final = 1_000


class _Bucket(list[WatchedCall]):
    """The calls that are due in a tick, which they all hold as the same object."""

    __slots__ = ("tick",)

    def __init__(self, tick: int) -> None:
        super().__init__()
        self.tick = tick


class Backlog(NamedTuple):
    """The calls that are due and not polled yet.

    Attributes:
        calls: how many.
        lag: for how many seconds the first of them has been due.
        label_set: the row of its labels; None where no call is due.
    """

    calls: int
    lag: float
    label_set: int | None


class TimingWheel:
    """The calls of one account, by the time at which they are due.

    A call has at most one valid entry: in the bucket of its `tick`, or, once that is past, in a
    fair queue. Other entries are left over from a call that was moved or removed.

    Args:
        priority: of a call that becomes due: 0 comes first. From `FAILING` on, a call has one turn
            in ten while others wait.

    Attributes:
        ready: how many calls are due.
    """

    def __init__(self, priority: Callable[[WatchedCall], int]) -> None:
        self._priority = priority
        self._buckets: dict[int, _Bucket] = {}
        self._ticks: list[int] = []  # a heap of the buckets' keys
        self._now_tick = -1
        self._healthy = FairQueue(self._is_ready)
        self._failing = FairQueue(self._is_ready)
        self.ready = 0
        self._turns = 0
        self._left_over = 0  # entries in the queues, at most

    def add(self, call: WatchedCall, due: float) -> None:
        """Add a call, or move it; `due` in seconds of the monotonic clock."""
        tick = int(due / TICK)
        if tick <= self._now_tick:
            if not self._is_ready(call):
                self.ready += 1
                # Not the `tick` of above: a number of its own would be a tenth of a call's memory.
                call.tick = self._now_tick if tick == self._now_tick else tick
            self._push(call)
        elif tick != call.tick:
            if call.tick >= 0:
                self.discard(call)
            bucket = self._buckets.get(tick)
            if bucket is None:
                bucket = self._buckets[tick] = _Bucket(tick)
                heappush(self._ticks, tick)
            call.tick = bucket.tick
            bucket.append(call)

    def discard(self, call: WatchedCall) -> None:
        """Remove a call."""
        if self._is_ready(call):
            self.ready -= 1
            self._left_over += 1
        call.tick = -1
        if self._left_over > self.ready + _MAX_LEFT_OVER:
            self._left_over = 0
            self._healthy.compact()
            self._failing.compact()

    def advance(self, now: float) -> None:
        """Queue the calls that have become due."""
        tick = int(now / TICK)
        tick += (tick + 1) * TICK <= now  # the division may be off by one
        if tick <= self._now_tick:
            return
        self._now_tick = tick
        while self._ticks and self._ticks[0] <= tick:
            due = heappop(self._ticks)
            # A call that was moved away and back stands in its bucket twice.
            for call in dict.fromkeys(self._buckets.pop(due)):
                if call.tick == due:
                    self.ready += 1
                    self._push(call)

    def pop(self, now: float, *, trial: bool = False) -> tuple[WatchedCall, float] | None:
        """Remove the call to poll now, and return it with the time since which it is due.

        Args:
            now: seconds of the monotonic clock.
            trial: whether its answer decides about the account: then it is a random call that did
                not fail, every other time one that was answered before; else one that failed least.

        Returns:
            None where no call is due; `next_due` returns when one is.
        """
        self.advance(now)
        if not self.ready:
            return None
        self._turns += 1
        first, second = self._healthy, self._failing
        if trial:
            rank = _was_never_answered if self._turns % 2 else _any
            call = first.pop_best(rank) or second.pop_best(self._priority)
            self._left_over += 1
        else:
            if not self._turns % _FAILING_EVERY:
                first, second = second, first
            call = first.pop() or second.pop()
        if call is None:
            raise RuntimeError("a call is due and in no queue")
        due = call.tick * TICK
        self.ready -= 1
        call.tick = -1
        return call, due

    def next_due(self) -> float | None:
        """Return when the next call is due, in seconds of the monotonic clock; None for never."""
        if self.ready:
            return -math.inf
        return self._ticks[0] * TICK if self._ticks else None

    def backlog(self, now: float) -> Backlog:
        """Return which calls are due."""
        self.advance(now)
        waiting = filter(None, (self._healthy.longest_waiting(), self._failing.longest_waiting()))
        first = min(waiting, key=attrgetter("tick"), default=None)
        if first is None:
            return Backlog(0, 0.0, None)
        return Backlog(self.ready, max(0.0, now - first.tick * TICK), first.label_set)

    def _is_ready(self, call: WatchedCall) -> bool:
        return 0 <= call.tick <= self._now_tick

    def _push(self, call: WatchedCall) -> None:
        priority = self._priority(call)
        (self._healthy if priority < FAILING else self._failing).push(call, priority)


def _any(_: WatchedCall) -> int:
    return 0


def _was_never_answered(call: WatchedCall) -> int:
    return call.state is CallState.NEW
