"""Turns that are shared evenly between sets of labels. Pure: no I/O, no clock.

Round robin, in which a set of labels that was idle comes next: "The Flow Queue CoDel Packet
Scheduler" (RFC 8290, section 4.1) does the same for network flows. A set that has just been served
keeps its place at the end of the round while it is empty, so it cannot come first twice in a round.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Final

from exporter.calls import WatchedCall

# Every so many turns of a set of labels, the call that waits longest comes first: no level starves.
_LONGEST_WAIT_EVERY: Final = 10


# Label sets, and calls of each of their levels, that are drawn to find the best call.
_SETS: Final = 20
_CALLS: Final = 10


class _LabelSet:
    """The calls of one set of labels, by level; the lowest level comes first."""

    __slots__ = ("label_set", "levels", "turns")

    def __init__(self, label_set: int) -> None:
        self.label_set = label_set
        self.levels: dict[int, deque[WatchedCall]] = {}
        self.turns = 0

    def pop(self, is_ready: Callable[[WatchedCall], bool]) -> WatchedCall | None:
        self.turns += 1
        if len(self.levels) == 1:  # where there is no backlog, as a rule
            (waiting,) = self.levels.values()
            while waiting:
                if is_ready(call := waiting.popleft()):
                    return call
            return None
        while levels := [level for level in self.levels if self._first(level, is_ready)]:
            if self.turns % _LONGEST_WAIT_EVERY:
                level = min(levels)
            else:
                level = min(levels, key=lambda level: self.levels[level][0].tick)
            return self.levels[level].popleft()
        return None

    def longest_waiting(self, is_ready: Callable[[WatchedCall], bool]) -> WatchedCall | None:
        first = [call for level in self.levels if (call := self._first(level, is_ready))]
        return min(first, key=lambda call: call.tick, default=None)

    def _first(self, level: int, is_ready: Callable[[WatchedCall], bool]) -> WatchedCall | None:
        """Return the first call of a level that is still to be polled."""
        waiting = self.levels[level]
        while waiting:
            if is_ready(waiting[0]):
                return waiting[0]
            waiting.popleft()
        return None


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

    def push(self, call: WatchedCall, level: int) -> None:
        """Add a call behind those of its label set and level."""
        if (calls := self._label_sets.get(call.label_set)) is None:
            calls = self._label_sets[call.label_set] = _LabelSet(call.label_set)
            self._round.appendleft(calls)
        if (waiting := calls.levels.get(level)) is None:
            waiting = calls.levels[level] = deque()
        waiting.append(call)

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
            for level, waiting in calls.levels.items():
                calls.levels[level] = deque(filter(self._is_ready, waiting))

    def pop_best(self, key: Callable[[WatchedCall], int]) -> WatchedCall | None:
        """Remove and return a call with the lowest key, at random where several have the same.

        Where very many calls wait, it is the best of a sample.
        """
        sample: list[WatchedCall] = []
        for _ in range(_SETS if self._round else 0):
            calls = random.choice(self._round)  # noqa: S311 - no secret depends on it
            for waiting in calls.levels.values():
                numbers = random.sample(range(len(waiting)), min(len(waiting), _CALLS))
                sample.extend(waiting[number] for number in numbers)
        random.shuffle(sample)
        # Its entry stays, and is skipped once the call is not ready any more.
        return min(filter(self._is_ready, sample), key=key, default=None) or self.pop()

    def longest_waiting(self) -> WatchedCall | None:
        """Return the call that has been due for longest."""
        first = (call for calls in self._round if (call := calls.longest_waiting(self._is_ready)))
        return min(first, key=lambda call: call.tick, default=None)
