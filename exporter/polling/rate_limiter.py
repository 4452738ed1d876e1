"""The rate limit of an account. Pure: the time, in monotonic seconds, is an argument."""

from __future__ import annotations

import math
from typing import Final

# A request may be late by this many seconds without delaying the next one: timers are coarse, and
# each late request would lower the rate.
_SLACK: Final = 0.004

# Hold a free slot for this long for requests other than polls, whose timers are coarse too.
_HELD: Final = 0.02
_MAX_HELD: Final = 1.0

# Throttling halves the rate, down to this share; it recovers within ten minutes.
_MIN_SHARE: Final = 0.05
_REGROWTH: Final = 1 / 600


class RateLimiter:
    """Spreads requests evenly: at most `rate` requests in any period of a second.

    A generic cell rate algorithm (ITU-T I.371) whose interval is stretched by its tolerance. While
    another request waits, polls and other requests alternate; otherwise polls could take all slots.

    Attributes:
        share: the share of `rate` in use: less than 1 after the provider has throttled.
    """

    def __init__(self, rate: float) -> None:
        self.share, self._share_since = 1.0, 0.0
        self._allowed_until = math.inf
        self._next = self._held_until = -math.inf
        self._polls_next = False  # the last slot was not for a poll
        self.set_rate(rate)

    def set_rate(self, rate: float) -> None:
        """Change the configured rate, in requests per second."""
        self._rate = rate
        self._interval = (1 + _SLACK) / (rate * self.share)

    def allow_until(self, until: float) -> None:
        """Refuse requests from `until` on, when the account's lease may have expired."""
        self._allowed_until = until

    def wait(self, now: float) -> float:
        """Return the seconds until the next request; 0 or less if it may be sent now."""
        return self._next - _SLACK - now if now < self._allowed_until else math.inf

    def wait_to_poll(self, now: float) -> float:
        """Return the seconds until the next poll, after a slot that is held for other requests."""
        return max(self.wait(now), self._held_until - now)

    def hold_slot(self, now: float, wait: float) -> None:
        """Hold the slot that is free in `wait` seconds for a request other than a poll."""
        if not self._polls_next:
            self._held_until = now + min(wait, _MAX_HELD) + _HELD

    def sent(self, now: float, *, poll: bool) -> None:
        """Record a request that is sent now."""
        self._next = max(now, self._next) + self._interval
        self._polls_next = not poll
        if not poll:
            self._held_until = -math.inf

    def slow_down(self, now: float) -> None:
        """Halve the rate, because the provider throttles."""
        self.share = max(_MIN_SHARE, self.share / 2)
        self._share_since = now
        self.set_rate(self._rate)

    def speed_up(self, now: float) -> None:
        """Raise a reduced rate, in proportion to the time since the last change."""
        if self.share < 1:
            self.share = min(1.0, self.share + (now - self._share_since) * _REGROWTH)
            self._share_since = now
            self.set_rate(self._rate)
