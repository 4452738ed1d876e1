"""Whether a target is sent anything: a circuit breaker. Pure: time comes in.

Times are seconds of the monotonic clock. Events are identified by the rows of their notifications.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from exporter.backoff import ExponentialBackoff

MAX_PAUSE: Final = 900.0
"""Seconds after which anything is tried again at the latest, whatever the target asks for."""

_PAUSES: Final = ExponentialBackoff(1.0, 60.0, jitter=0.25)

_MIN_FAILED: Final = 5
"""Different events that fail in a row and so pause a target."""

_MIN_THROTTLED: Final = 2
"""Different events in a row to which a target has to answer `Retry-After` before it applies."""

# Where bad events are many, more of them come in a row though nothing is wrong with the target.
_RUN_FACTOR: Final = 5.0
_RUN_DECAY: Final = 0.98
_MAX_NEEDED: Final = 100


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
    """

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._failed: set[int] = set()  # since the last good answer
        self._throttled: set[int] = set()
        self._pauses = 0  # in a row
        self._until = -math.inf
        self._throttled_until = -math.inf  # a `Retry-After` that is confirmed
        self._succeeded_at = -math.inf
        self._run = 0.0  # failures that came in a row though the target was healthy
        self._trial: int | None = None

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

    def sent(self, event: int, now: float) -> None:
        """Record that an event is sent now."""
        if self.state(now) is State.HALF_OPEN:
            self._trial = event

    def released(self, event: int) -> None:
        """Record that an event could not be sent after all."""
        if self._trial == event:
            self._trial = None

    def succeeded(self, now: float) -> bool:
        """Record a good answer; returns whether a pause ends with it."""
        self._succeeded_at = now
        if now < self._throttled_until:
            return False  # it was under way when the target asked for the pause
        paused = self._pauses > 0
        if not paused:
            self._run = max(self._run * _RUN_DECAY, len(self._failed))
        self._failed.clear()
        self._throttled.clear()
        self._pauses, self._trial = 0, None
        return paused

    def failed(self, event: int, retry_after: float | None, sent_at: float, now: float) -> bool:
        """Record an event that failed.

        Args:
            event: which.
            retry_after: seconds for which the target asks not to be sent anything, if it does.
            sent_at: when it was sent: one from before the last good answer proves nothing.
            now: when the answer came.

        Returns:
            Whether a pause begins with it.
        """
        state, trial = self.state(now), self._trial == event
        self.released(event)
        if sent_at < self._succeeded_at and not trial:
            return False
        self._failed.add(event)
        if retry_after is not None:
            self._throttled.add(event)
            if len(self._throttled) >= self._needed(_MIN_THROTTLED):
                until = now + min(MAX_PAUSE, retry_after)
                self._throttled_until = max(self._throttled_until, until)
        begins = self._throttled_until > now or len(self._failed) >= self._needed(_MIN_FAILED)
        if trial or (state is State.CLOSED and begins):
            self._pauses += 1
            self._until = now + _PAUSES.wait(self._pauses, self._chance())
        self._until = max(self._until, self._throttled_until)
        return state is State.CLOSED and begins

    def _needed(self, different: int) -> float:
        return max(different, min(_MAX_NEEDED, _RUN_FACTOR * self._run))
