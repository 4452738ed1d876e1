"""Circuit breaker of a target. Pure: times are parameters, in seconds of the monotonic clock.

Events are identified by the ledger rows of their notifications.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from exporter.backoff import ExponentialBackoff

MAX_PAUSE: Final = 900.0
"""Longest pause in seconds, also if the target asks for more."""

PAUSES: Final = ExponentialBackoff(1.0, 60.0, jitter=0.25)

_MIN_FAILED: Final = 5
"""Consecutive failures of different events that open the breaker."""

_MIN_THROTTLED: Final = 2
"""Minimum number of events with a `Retry-After` response before the target is paused for it."""

# With many events that fail on their own, longer runs of failures are normal: adapt the limit.
_RUN_FACTOR: Final = 5.0
_RUN_DECAY: Final = 0.98
_MAX_NEEDED: Final = 100


class State(Enum):
    """State of a circuit breaker."""

    CLOSED = auto()  # events are sent
    OPEN = auto()  # paused: nothing is sent
    HALF_OPEN = auto()  # one event is sent on trial


class TargetBreaker:
    """Pauses a target when different events fail in a row, without a success between them.

    After each pause, one event is sent on trial: success closes the breaker, failure makes the
    next pause longer. `chance` returns a random number from 0 to 1, for the jitter of pauses.
    """

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._failed: set[int] = set()  # since the last success
        self._throttled: set[int] = set()
        self._pauses = 0  # consecutive
        self._until = -math.inf
        self._throttled_until = -math.inf  # end of a confirmed `Retry-After`
        self._succeeded_at = -math.inf
        self._run = 0.0  # decaying maximum of consecutive failures while the target was healthy
        self._trial: int | None = None

    def state(self, now: float) -> State:
        if not self._pauses:
            return State.CLOSED
        return State.OPEN if now < self._until else State.HALF_OPEN

    @property
    def on_trial(self) -> bool:
        return self._trial is not None

    def wait(self, now: float) -> float:
        """Return the seconds until the pause ends; 0 without a pause."""
        return max(0.0, self._until - now) if self._pauses else 0.0

    def sent(self, event: int, now: float) -> None:
        """Record the start of an attempt."""
        if self.state(now) is State.HALF_OPEN:
            self._trial = event

    def released(self, event: int) -> None:
        """Record that an event was not sent after all."""
        if self._trial == event:
            self._trial = None

    def succeeded(self, event: int, now: float) -> bool:
        """Record a success of an event; return whether it ends a pause."""
        self.released(event)
        self._succeeded_at = now
        if now < self._throttled_until:
            return False  # sent before the target asked for the pause
        paused = self._pauses > 0
        if not paused:
            self._run = max(self._run * _RUN_DECAY, len(self._failed))
        self._failed.clear()
        self._throttled.clear()
        self._pauses, self._trial = 0, None
        return paused

    def failed(self, event: int, retry_after: float | None, sent_at: float, now: float) -> bool:
        """Record a failure; return whether it starts a pause.

        An attempt that started before the last success is ignored.
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
            self._until = now + PAUSES.wait(self._pauses, self._chance())
        self._until = max(self._until, self._throttled_until)
        return state is State.CLOSED and begins

    def _needed(self, different: int) -> float:
        return max(different, min(_MAX_NEEDED, _RUN_FACTOR * self._run))
