"""Turns that are shared evenly between sets of labels. Pure: no I/O, no clock.

Round robin, in which a set of labels that was idle comes next: "The Flow Queue CoDel Packet
Scheduler" (RFC 8290, section 4.1) does the same for network flows. A set that has just been served
keeps its place at the end of the round while it is empty, so it cannot come first twice in a round.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from operator import attrgetter
from typing import Final

from exporter.calls import WatchedCall

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
    """The calls that are due, of one account.

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
