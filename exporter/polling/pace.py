"""How fast an account may be asked: its rate, its pauses, and the way back. Pure: time comes in.

Times are seconds of the monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from exporter.esms.codes import Outcome

# How late a request may be and still be made up for: timers are coarse, and without it each late
# one would lower the rate for good.
_SLACK: Final = 0.004

MAX_PAUSE: Final = 900.0
"""Seconds that any pause lasts at most, whatever a `Retry-After` says."""

FAILURES_BEFORE_PAUSE: Final = 5
"""Failures in a row, over all calls of an account, that pause it."""

# A throttled account's rate is halved, down to this share, and grows back in ten minutes.
_LEAST_SHARE: Final = 0.05
_REGROWTH: Final = 1 / 600


class Limit(Protocol):
    """How many requests per second an account may be asked with."""

    def set(self, rate: float) -> None:
        """Change the rate, in requests per second."""

    def wait(self, now: float) -> float:
        """Return the seconds until a request may be sent; 0 or less for now."""

    def take(self, now: float) -> None:
        """Account for a request that is sent now."""


class RateLimit:
    """Spreads requests evenly: no second, wherever it starts, sees more than `rate` of them.

    A generic cell rate algorithm (ITU-T I.371) whose interval is stretched by its tolerance.
    """

    def __init__(self, rate: float) -> None:
        self._next = -math.inf
        self.set(rate)

    def set(self, rate: float) -> None:
        """Change the rate, in requests per second."""
        self._interval = (1 + _SLACK) / rate

    def wait(self, now: float) -> float:
        """Return the seconds until a request may be sent; 0 or less for now."""
        return self._next - _SLACK - now

    def take(self, now: float) -> None:
        """Account for a request that is sent now."""
        self._next = max(self._next, now) + self._interval


@dataclass(frozen=True, slots=True)
class BackOffRange:
    """A pause that doubles, in seconds."""

    first: float
    longest: float

    def pause(self, level: int) -> float:
        """Return the length of the pause after `level` earlier ones in a row."""
        return min(self.longest, self.first * 2.0 ** min(level, 64))


_AUTH: Final = BackOffRange(30.0, 900.0)
_DOWN: Final = BackOffRange(5.0, 120.0)

GOOD: Final = frozenset({Outcome.OK, Outcome.NOT_FOUND})
"""Outcomes that show that the account can be polled."""


class Pace:
    """Whether one account may be asked now.

    It starts with a single request, and goes on so after each pause: not before an answer is good
    are further ones sent. Wrong credentials thus cost one request, however many calls are watched.

    Args:
        rate_limit: requests per second.
        jitter: returns a factor around 1; pauses of several accounts are not to end together.
        limit: makes what spreads the requests, of a rate.
    """

    def __init__(
        self,
        rate_limit: float,
        jitter: Callable[[], float],
        limit: Callable[[float], Limit] = RateLimit,
    ) -> None:
        self._rate_limit = rate_limit
        self._limit = limit(rate_limit)
        self._jitter = jitter
        self._share = 1.0
        self._share_since = 0.0
        self._trial = True  # one request at a time, until an answer is good
        self._trial_under_way = False
        self._failures = 0
        self._level = 0
        self._paused_at = -math.inf
        self.paused_until = -math.inf
        self.reason: Outcome | None = None
        self.well = False  # whether a good answer changes nothing

    def set_rate_limit(self, rate_limit: float) -> None:
        """Change the configured rate, in requests per second."""
        self._rate_limit = rate_limit
        self._limit.set(rate_limit * self._share)

    def retry(self, now: float) -> None:
        """End a pause: the credentials or the address have changed. One request tries them."""
        self.reason = None
        self._paused_at = now  # what was asked with the old ones says nothing of the new
        self.paused_until = -math.inf
        self._level = 0
        self._failures = 0
        self._trial, self._trial_under_way = True, False
        self.well = False

    def wait(self, now: float) -> float:
        """Return the seconds until a request may be sent; 0 or less for now.

        Infinite while the answer of a single request is awaited: its coming is the event.
        """
        if self._trial_under_way:
            return math.inf
        if now < self.paused_until:
            return self.paused_until - now
        return self._limit.wait(now)

    @property
    def on_trial(self) -> bool:
        """Whether one request at a time is sent, until an answer is good."""
        return self._trial

    def sent(self, now: float) -> None:
        """Account for a request that is sent now."""
        self._limit.take(now)
        self._trial_under_way = self._trial

    def answered(
        self, outcome: Outcome, retry_after: float | None, sent_at: float, now: float
    ) -> bool:
        """Account for what a request came to.

        Args:
            outcome: see `Outcome`.
            retry_after: the seconds that a throttling provider asked for.
            sent_at: when the request was sent: one from before a pause does not lengthen it.
            now: when the answer came.

        Returns:
            Whether a pause begins with it.
        """
        if sent_at < self._paused_at:
            return False
        trial, self._trial_under_way = self._trial, False
        if outcome in GOOD:
            self._failures = self._level = 0
            self._trial = False
            self.reason = None
            self.paused_until = -math.inf
            self._regrow(now)
            self.well = self._share == 1
            return False
        self.well = False
        self._failures += 1
        if outcome is Outcome.AUTH:
            pause = _AUTH.pause(self._level) * self._jitter()
        elif outcome is Outcome.THROTTLED:
            self._throttle(now)
            pause = _DOWN.pause(self._level) * self._jitter()
            if retry_after is not None:
                pause = max(retry_after, _DOWN.first)
        elif (trial and self._level) or self._failures >= FAILURES_BEFORE_PAUSE:
            pause = _DOWN.pause(self._level) * self._jitter()
        else:
            return False
        self._level += 1
        self._trial = True
        self._paused_at = now
        self.paused_until = now + min(pause, MAX_PAUSE)
        self.reason = outcome
        return True

    def _throttle(self, now: float) -> None:
        self._share = max(_LEAST_SHARE, self._share / 2)
        self._share_since = now
        self._limit.set(self._rate_limit * self._share)

    def _regrow(self, now: float) -> None:
        if self._share < 1:
            self._share = min(1.0, self._share + (now - self._share_since) * _REGROWTH)
            self._share_since = now
            self._limit.set(self._rate_limit * self._share)
