"""Whose turn it is, where polls and other requests of an account wait for one. Pure: time comes in.

Times are seconds of the monotonic clock.
"""

from __future__ import annotations

import math
from typing import Final

# Who waits aside looks for a turn when it is there: for so long is one left.
_LEFT: Final = 0.02
_AT_MOST: Final = 1.0


class Way:
    """Leaves every other turn to requests that are not polls, as long as such a one waits.

    Polls of an account with more calls than its rate would take every turn.

    Attributes:
        until: no poll is sent before, but for one that tries an account.
    """

    def __init__(self) -> None:
        self.until = -math.inf
        self._given = False  # such a request had the last turn: a poll has the next one

    def wanted(self, now: float, wait: float) -> None:
        """Know that such a request waits for a turn, which there may be in `wait` seconds."""
        if not self._given:
            self.until = now + min(wait, _AT_MOST) + _LEFT

    def given(self) -> None:
        """Know that such a request was sent."""
        self.until, self._given = -math.inf, True

    def polled(self) -> None:
        """Know that a poll was sent."""
        self._given = False
