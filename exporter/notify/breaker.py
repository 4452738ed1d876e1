"""Whether a target is sent anything: a circuit breaker. Pure: time comes in.

Times are seconds of the monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from exporter.backoff import ExponentialBackoff

LONGEST: Final = 900.0
"""Seconds after which a notification is tried again at the latest, whatever the target asks for."""

FAILURES_BEFORE_PAUSE: Final = 5
"""Different events that fail in a row and so pause a target."""

_WITNESSES: Final = 2
"""Different events that a target has to answer in a row with `Retry-After`, to be given that."""

# Where bad events are many, more of them come in a row though nothing is wrong with the target.
_RUNS: Final = 5.0
_FORGET: Final = 0.98
_MOST: Final = 100

_PAUSE: Final = ExponentialBackoff(1.0, 60.0, jitter=0.25)


class State(Enum):
    """Of a circuit breaker."""

    CLOSED = auto()  # everything is sent
    OPEN = auto()  # nothing is: paused
    HALF_OPEN = auto()  # one event is: on trial


class CircuitBreaker:
    """Pauses a target when different events fail in a row, with no good answer between them.

    After each pause one event is on trial: a good answer closes the breaker, anything else makes
    the next pause longer.

    Args:
        chance: returns a number from 0 to 1, for the length of pauses.

    Attributes:
        last: the id of the event that failed last; another one is to be tried next.
    """

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._failed: set[str] = set()  # since the last good answer
        self._throttled: set[str] = set()
        self._pauses = 0  # in a row
        self._until = -math.inf
        self._kept_until = -math.inf  # a `Retry-After` that is confirmed
        self._good_at = -math.inf
        self._run = 0.0  # failures that came in a row though the target was well
        self._trial: str | None = None
        self.last: str | None = None

    def state(self, now: float) -> State:
        """Return what may be sent now."""
        if not self._pauses:
            return State.CLOSED
        return State.OPEN if now < self._until else State.HALF_OPEN

    @property
    def on_trial(self) -> bool:
        """Whether the answer to a trial is awaited."""
        return self._trial is not None

    def wait(self, now: float) -> float:
        """Return the seconds until a pause ends; 0 where there is none."""
        return max(0.0, self._until - now) if self._pauses else 0.0

    def sent(self, event: str, now: float) -> None:
        """Account for an event that is sent now."""
        if self.state(now) is State.HALF_OPEN:
            self._trial = event

    def succeeded(self, now: float) -> bool:
        """Account for a good answer.

        Returns:
            Whether a pause ends with it.
        """
        self._good_at = now
        if now < self._kept_until:
            return False  # it was under way when the target asked for the pause
        paused = self._pauses > 0
        if not paused:
            self._run = max(self._run * _FORGET, len(self._failed))
        self._failed.clear()
        self._throttled.clear()
        self._pauses = 0
        self._trial = None
        return paused

    def failed(self, event: str, retry_after: float | None, sent_at: float, now: float) -> bool:
        """Account for an event that was not taken.

        Args:
            event: its id.
            retry_after: seconds for which the target asks not to be sent anything, if it does.
            sent_at: when it was sent: one from before the last good answer proves nothing.
            now: when the answer came.

        Returns:
            Whether a pause begins with it.
        """
        state, self.last = self.state(now), event
        trial = self._trial == event
        if trial:
            self._trial = None
        elif sent_at < self._good_at:
            return False
        if len(self._failed) < _MOST:
            self._failed.add(event)
        if retry_after is not None:
            if len(self._throttled) < _MOST:
                self._throttled.add(event)
            if len(self._throttled) >= self._enough(_WITNESSES):
                kept = now + min(LONGEST, retry_after)
                self._kept_until = max(self._kept_until, kept)
        begins = self._kept_until > now or len(self._failed) >= self._enough(FAILURES_BEFORE_PAUSE)
        if trial or (state is State.CLOSED and begins):
            self._pauses += 1
            pause = _PAUSE.wait(self._pauses, self._chance())
            self._until = now + pause
        self._until = max(self._until, self._kept_until)
        return state is State.CLOSED and begins

    def _enough(self, different: int) -> float:
        return max(different, min(_MOST, _RUNS * self._run))
