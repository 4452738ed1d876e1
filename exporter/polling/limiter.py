"""How many requests per second an account may be sent. Pure: time comes in as an argument.

Times are seconds of the monotonic clock.
"""

from __future__ import annotations

import math
from typing import Final, Protocol

# How late a request may be and still be made up for: timers are coarse, and without it each late
# one would lower the rate for good.
_SLACK: Final = 0.004


class Limit(Protocol):
    """How many requests per second an account may be asked with."""

    def set(self, rate: float) -> None:
        """Change the rate, in requests per second."""

    def wait(self, now: float) -> float:
        """Return the seconds until a request may be sent; 0 or less for now."""

    def take(self, now: float) -> None:
        """Account for a request that is sent now."""


class RateLimiter:
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
