"""Which call is polled next: a timing wheel for calls to come, fair queues for those that are due.

The cost for a call does not grow with the number of calls.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from operator import attrgetter
from typing import Final, NamedTuple

from exporter.calls import CallState, WatchedCall

TICK: Final = 0.05
"""Seconds; calls that are due within the same tick are due together."""

FAILING: Final = 4
"""The priority from which on calls are polled after all others: they failed the last time."""

# Of ten turns, calls that failed get one while others wait.
_FAILING_EVERY: Final = 10

# Entries of calls that were moved or removed, beyond which the queues are rebuilt.
_MAX_LEFT_OVER: Final = 1_000


# In every tenth turn of a set of labels, its longest waiting call comes first: no priority starves.
_LONGEST_WAITING_EVERY: Final = 10

# Label sets, and calls of each of their priorities, that are sampled to find the best call.
_SAMPLED_SETS: Final = 20
_SAMPLED_CALLS: Final = 10

_tick: Final = attrgetter("tick")


class _LabelSet:
    """The calls of one set of labels, by priority; the lowest number comes first."""

    __slots__ = ("label_set", "queues", "turns")

    def __init__(self, label_set: int) -> None:
        self.label_set = label_set
        self.queues: dict[int, deque[WatchedCall]] = {}  # in the order of the priorities
        self.turns = 0

    def push(self, call: WatchedCall, priority: int) -> None:
        if (queue := self.queues.get(priority)) is None:
            self.queues[priority] = queue = deque()
            self.queues = dict(sorted(self.queues.items()))
        queue.append(call)

    def pop(self, is_ready: Callable[[WatchedCall], bool]) -> WatchedCall | None:
        self.turns += 1
        if self.turns % _LONGEST_WAITING_EVERY or len(self.queues) == 1:
            for queue in self.queues.values():
                while queue:
                    if is_ready(call := queue.popleft()):
                        return call
            return None
        if longest := self.longest_waiting(is_ready):
            next(queue for queue in self.queues.values() if queue and queue[0] is longest).popleft()
        return longest

    def longest_waiting(self, is_ready: Callable[[WatchedCall], bool]) -> WatchedCall | None:
        for queue in self.queues.values():
            while queue and not is_ready(queue[0]):
                queue.popleft()
        heads = (queue[0] for queue in self.queues.values() if queue)
        return min(heads, key=_tick, default=None)


class FairQueue:
    """The calls of one account that are due: sets of labels share the turns evenly.

    Round robin, in which a set of labels that was idle comes next: "The Flow Queue CoDel Packet
    Scheduler" (RFC 8290, section 4.1) does the same for network flows. A set that has just been
    served keeps its place at the end of the round while it is empty, so it cannot come first twice
    in a round.

    Args:
        is_ready: whether a call is due and not being polled; entries of other calls are left over
            from calls that were moved or removed, and are skipped.
    """

    def __init__(self, is_ready: Callable[[WatchedCall], bool]) -> None:
        self._is_ready = is_ready
        self._label_sets: dict[int, _LabelSet] = {}
        self._round: deque[_LabelSet] = deque()

    def push(self, call: WatchedCall, priority: int) -> None:
        """Add a call behind those of its label set and priority."""
        if (calls := self._label_sets.get(call.label_set)) is None:
            calls = self._label_sets[call.label_set] = _LabelSet(call.label_set)
            self._round.appendleft(calls)
        calls.push(call, priority)

    def pop(self) -> WatchedCall | None:
        """Remove and return the next call."""
        while self._round:
            calls = self._round[0]
            if call := calls.pop(self._is_ready):
                if len(self._round) > 1:
                    self._round.rotate(-1)
                return call
            self._round.popleft()
            del self._label_sets[calls.label_set]
        return None

    def compact(self) -> None:
        """Remove the entries of calls that are not ready."""
        for calls in self._round:
            for priority, queue in calls.queues.items():
                calls.queues[priority] = deque(filter(self._is_ready, queue))

    def pop_best(self, key: Callable[[WatchedCall], int]) -> WatchedCall | None:
        """Remove and return a call with the lowest key, at random where several have the same.

        Where very many calls wait, it is the best of a sample.
        """
        sample: list[WatchedCall] = []
        for _ in range(_SAMPLED_SETS if self._round else 0):
            calls = random.choice(self._round)  # noqa: S311 - no secret depends on it
            for queue in calls.queues.values():
                numbers = random.sample(range(len(queue)), min(len(queue), _SAMPLED_CALLS))
                sample.extend(queue[number] for number in numbers)
        random.shuffle(sample)
        # Its entry stays, and is skipped once the call is not ready any more.
        return min(filter(self._is_ready, sample), key=key, default=None) or self.pop()

    def longest_waiting(self) -> WatchedCall | None:
        """Return the call that has been due for longest."""
        heads = (call for calls in self._round if (call := calls.longest_waiting(self._is_ready)))
        return min(heads, key=_tick, default=None)


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
        # The calls that are due in a tick, which they all hold as the same object.
        self._buckets: dict[int, tuple[int, list[WatchedCall]]] = {}
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
            if (bucket := self._buckets.get(tick)) is None:
                bucket = self._buckets[tick] = tick, []
                heappush(self._ticks, tick)
            call.tick, calls = bucket
            calls.append(call)

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
            for call in dict.fromkeys(self._buckets.pop(due)[1]):
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
        first = min(waiting, key=_tick, default=None)
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
