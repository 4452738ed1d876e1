"""The schedule of polls: a timing wheel for future polls, fair queues for calls that are due.

The cost per call does not grow with the number of calls.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from operator import attrgetter
from typing import Final, NamedTuple

from exporter.calls import CallState, WatchedCall

TICK: Final = 0.05
"""Resolution of due times, in seconds."""

FAILING: Final = 4
"""Calls whose last poll failed have this priority or a higher number: they come after all others.
"""

# Calls whose last poll failed get one turn in ten while others wait.
_FAILING_EVERY: Final = 10

# Rebuild the queues when they have more stale entries of moved or removed calls than this.
_MAX_LEFT_OVER: Final = 1_000

# Every tenth turn of a label set takes its longest waiting call, so that no priority starves.
_LONGEST_WAITING_EVERY: Final = 10

# Sample sizes to find the best call: label sets, and calls of each priority in them.
_SAMPLED_SETS: Final = 20
_SAMPLED_CALLS: Final = 10


class _Queue:
    """Due calls, in the order in which they were added.

    An entry is stale if its call was polled, moved or removed since, even if it is due again: the
    call has another tick.
    """

    __slots__ = ("calls", "ticks")

    def __init__(self) -> None:
        # Two queues, because a pair for each call would take seven times the memory.
        self.calls = deque[WatchedCall]()
        self.ticks = deque[int]()

    def push(self, call: WatchedCall) -> None:
        self.calls.append(call)
        self.ticks.append(call.tick)

    def pop(self) -> WatchedCall | None:
        while self.calls:
            call = self.calls.popleft()
            if call.tick == self.ticks.popleft():
                return call
        return None

    def head(self) -> WatchedCall | None:
        """Return the first call, after dropping the stale entries before it."""
        while self.calls:
            if (call := self.calls[0]).tick == self.ticks[0]:
                return call
            self.calls.popleft()
            self.ticks.popleft()
        return None

    def sample(self, size: int) -> list[WatchedCall]:
        """Return some calls at random, fewer if there are stale entries."""
        numbers = random.sample(range(len(self.calls)), min(len(self.calls), size))
        return [self.calls[n] for n in numbers if self.calls[n].tick == self.ticks[n]]

    def compact(self) -> None:
        """Remove stale entries."""
        entries = zip(self.calls, self.ticks, strict=True)
        self.calls = deque(call for call, tick in entries if call.tick == tick)
        self.ticks = deque(call.tick for call in self.calls)


class _LabelSet:
    """The due calls of a label set, by priority; the lowest number comes first."""

    __slots__ = ("label_set", "queues", "turns")

    def __init__(self, label_set: int) -> None:
        self.label_set = label_set
        self.queues: dict[int, _Queue] = {}  # in the order of the priorities
        self.turns = 0

    def push(self, call: WatchedCall, priority: int) -> None:
        if (queue := self.queues.get(priority)) is None:
            self.queues[priority] = queue = _Queue()
            self.queues = dict(sorted(self.queues.items()))
        queue.push(call)

    def pop(self) -> WatchedCall | None:
        queues: Iterable[_Queue] = self.queues.values()
        if len(self.queues) > 1:
            self.turns += 1
            if self.turns % _LONGEST_WAITING_EVERY == 0:
                queues = sorted(filter(_Queue.head, queues), key=lambda queue: queue.ticks[0])
        for queue in queues:
            if call := queue.pop():
                return call
        return None


class FairQueue:
    """The due calls of an account, shared evenly between label sets.

    Round robin; a label set that was idle comes next, as for network flows in "The Flow Queue CoDel
    Packet Scheduler" (RFC 8290, section 4.1). A served label set keeps its place at the end of the
    round while it is empty, so it cannot come first twice in a round.
    """

    def __init__(self) -> None:
        self._label_sets: dict[int, _LabelSet] = {}
        self._round: deque[_LabelSet] = deque()

    def push(self, call: WatchedCall, priority: int) -> None:
        """Add a call at the end of its label set and priority."""
        if (calls := self._label_sets.get(call.label_set)) is None:
            calls = self._label_sets[call.label_set] = _LabelSet(call.label_set)
            self._round.appendleft(calls)
        calls.push(call, priority)

    def pop(self) -> WatchedCall | None:
        """Remove and return the next call."""
        while self._round:
            if call := self._round[0].pop():
                self._round.rotate(-1)
                return call
            del self._label_sets[self._round.popleft().label_set]
        return None

    def compact(self) -> None:
        """Remove stale entries."""
        for calls in self._round:
            for queue in calls.queues.values():
                queue.compact()

    def pop_best(self, key: Callable[[WatchedCall], int]) -> WatchedCall | None:
        """Remove and return a call with the lowest key, chosen at random if there are several.

        With very many calls, return the best of a sample.
        """
        sample: list[WatchedCall] = []
        for _ in range(_SAMPLED_SETS if self._round else 0):
            calls = random.choice(self._round)  # noqa: S311 - no secret depends on it
            for queue in calls.queues.values():
                sample.extend(queue.sample(_SAMPLED_CALLS))
        random.shuffle(sample)
        # The entry stays, and is stale from now on.
        return min(sample, key=key, default=None) or self.pop()

    def heads(self) -> list[WatchedCall]:
        """Return the calls that have been due for longest in their label set and priority."""
        queues = (queue for calls in self._round for queue in calls.queues.values())
        return [call for queue in queues if (call := queue.head())]


class Backlog(NamedTuple):
    """The calls that are due and not polled yet.

    Attributes:
        calls: number of calls.
        lag: seconds since the first of them was due.
        label_set: the row of its label set; None if no call is due.
    """

    calls: int
    lag: float
    label_set: int | None


class TimingWheel:
    """The calls of an account, by due time.

    A call has at most one valid entry: in the bucket of its `tick`, or in a fair queue once it is
    due. Entries of moved or removed calls are stale.

    Args:
        priority: returns the priority of a due call; 0 comes first. Calls from `FAILING` on get one
            turn in ten while others wait.

    Attributes:
        ready: number of due calls.
    """

    def __init__(self, priority: Callable[[WatchedCall], int]) -> None:
        self._priority = priority
        # Tick objects, shared by the calls of the bucket, and the calls.
        self._buckets: dict[int, tuple[int, list[WatchedCall]]] = {}
        self._ticks: list[int] = []  # a heap of the buckets' keys
        self._now_tick, self._next_tick_at = -1, 0.0
        self._healthy = FairQueue()
        self._failing = FairQueue()
        self.ready = 0
        self._turns = 0
        self._left_over = 0  # upper bound of stale entries in the queues

    def add(self, call: WatchedCall, due: float) -> None:
        """Add or move a call; `due` is in monotonic seconds."""
        tick = int(due / TICK)
        if tick <= self._now_tick:
            if not self._is_ready(call):
                self.ready += 1
                # Share the object: a separate number would be a tenth of a call's memory.
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
        if now < self._next_tick_at:
            return
        tick = int(now / TICK)
        tick += (tick + 1) * TICK <= now  # correct rounding of the division
        self._now_tick, self._next_tick_at = tick, (tick + 1) * TICK
        while self._ticks and self._ticks[0] <= tick:
            due = heappop(self._ticks)
            # A call that was moved away and back is in its bucket twice.
            for call in dict.fromkeys(self._buckets.pop(due)[1]):
                if call.tick == due:
                    self.ready += 1
                    self._push(call)

    def pop(self, now: float) -> tuple[WatchedCall, float] | None:
        """Remove and return the next call to poll, with its due time; None if no call is due."""
        self.advance(now)
        if not self.ready:
            return None
        self._turns += 1
        if self._turns % _FAILING_EVERY:
            return self._taken(self._healthy.pop() or self._failing.pop())
        return self._taken(self._failing.pop() or self._healthy.pop())

    def pop_for_trial(self, now: float) -> tuple[WatchedCall, float] | None:
        """Remove and return a call whose answer decides about the account; see `pop`.

        Choose a random call that did not fail (every second time, one with an answer), else one
        with the fewest failures.
        """
        self.advance(now)
        if not self.ready:
            return None
        self._turns += 1
        self._left_over += 1
        odd = self._turns % 2 == 1
        best = self._healthy.pop_best(lambda call: odd and call.state is CallState.NEW)
        return self._taken(best or self._failing.pop_best(self._priority))

    def _taken(self, call: WatchedCall | None) -> tuple[WatchedCall, float]:
        if call is None:
            raise RuntimeError("a due call is missing in the queues")
        due = call.tick * TICK
        self.ready -= 1
        call.tick = -1
        return call, due

    def next_due(self) -> float | None:
        """Return when the next call is due, in monotonic seconds; None if there are no calls."""
        if self.ready:
            return -math.inf
        return self._ticks[0] * TICK if self._ticks else None

    def backlog(self, now: float) -> Backlog:
        """Return the number of due calls, and the lag."""
        self.advance(now)
        heads = self._healthy.heads() + self._failing.heads()
        if (first := min(heads, key=attrgetter("tick"), default=None)) is None:
            return Backlog(0, 0.0, None)
        return Backlog(self.ready, max(0.0, now - first.tick * TICK), first.label_set)

    def _is_ready(self, call: WatchedCall) -> bool:
        return 0 <= call.tick <= self._now_tick

    def _push(self, call: WatchedCall) -> None:
        priority = self._priority(call)
        (self._healthy if priority < FAILING else self._failing).push(call, priority)
