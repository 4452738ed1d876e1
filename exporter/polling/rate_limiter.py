"""How many requests per second an account may be sent. Pure: time comes in as an argument.

Times are seconds of the monotonic clock.
"""

from __future__ import annotations

import math
from typing import Final

# How late a request may be and still be made up for: timers are coarse, and without it each late
# request would lower the rate for good.
_SLACK: Final = 0.004

# Hold a slot for other requests than polls this long after it is free: their timers are coarse too.
_HELD: Final = 0.02
_MAX_HELD: Final = 1.0

# A throttled account's rate is halved, down to this share, and grows back in ten minutes.
_MIN_SHARE: Final = 0.05
_REGROWTH: Final = 1 / 600


class RateLimiter:
    """Spread an account's requests evenly: no second, wherever it starts, sees more than `rate`.

    A generic cell rate algorithm (ITU-T I.371) whose interval is stretched by its tolerance. Polls
    of an account with more calls than its rate would take every slot: while another request waits,
    polls and others take turns.

    Args:
        rate: requests per second.
        held_until: see `hold`.

    Attributes:
        share: of the configured rate that is used: less than 1 after the provider throttled.
    """

    def __init__(self, rate: float, held_until: float = math.inf) -> None:
        self.share = 1.0
        self._lease_until = held_until
        self._share_since = 0.0
        self._next = -math.inf
        self._held_until = -math.inf
        self._polls_next = False  # another request had the last slot
        self.set_rate(rate)

    def set_rate(self, rate: float) -> None:
        """Change the configured rate, in requests per second."""
        self._rate = rate
        self._interval = (1 + _SLACK) / (rate * self.share)

    def hold(self, until: float) -> None:
        """Send nothing from a time on: the exporter may not hold the account's lease then."""
        self._lease_until = until

    def wait(self, now: float) -> float:
        """Return the seconds until a request may be sent; 0 or less for now."""
        return self._next - _SLACK - now if now < self._lease_until else math.inf

    def wait_to_poll(self, now: float) -> float:
        """Return the seconds until a poll may be sent, after the slot that is held for others."""
        return max(self.wait(now), self._held_until - now)

    def hold_slot(self, now: float, wait: float) -> None:
        """Hold the slot that is free in `wait` seconds for another request than a poll."""
        if not self._polls_next:
            self._held_until = now + min(wait, _MAX_HELD) + _HELD

    def sent(self, now: float, *, poll: bool) -> None:
        """Count a request that is sent now."""
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
        """Let a halved rate grow back, by the time that has passed."""
        if self.share < 1:
            self.share = min(1.0, self.share + (now - self._share_since) * _REGROWTH)
            self._share_since = now
            self.set_rate(self._rate)
