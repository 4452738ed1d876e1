"""A rate that several exporters share: each asks an account in turns that were reserved for it.

Pure: time comes in, in seconds of the monotonic clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final

from exporter.polling.rate_limiter import RateLimiter

_LATE: Final = 0.025
"""How late a turn may be taken; later, it is lost. The interval is stretched by that share, so that
no second sees more than the rate although one request is late and the next one is not."""

_FAST: Final = 5_000
"""A rate at which one exporter alone cannot take every turn in time."""

_LATE_IF_FAST: Final = 0.25
"""How late a turn may be taken beyond that rate: else the exporters would work one after the other,
each in the turns that it has reserved, and not at the same time."""

_AHEAD: Final = 0.25
"""Seconds that are reserved at a time, at most: for so long may others have to wait."""


class Lease:
    """Until when an exporter may ask for the calls that it has claimed.

    Attributes:
        until: from then on others may have claimed them.
    """

    __slots__ = ("until",)

    def __init__(self) -> None:
        self.until = -math.inf


class Turns(RateLimiter):
    """The turns of one exporter in asking one account.

    Args:
        lease: nothing is asked once it has ended.
        ask: called when turns have to be reserved: `wish` says how many, and `granted` is to be
            called when they are, or `refused`.
        rate: of all exporters together, in requests per second.
    """

    def __init__(self, lease: Lease, ask: Callable[[], None], rate: float) -> None:
        self._lease = lease
        self._ask = ask
        self._asked = False
        self._turns: deque[tuple[float, float, int]] = deque()  # first, apart, how many
        self._size = 1
        self._missed = False
        super().__init__(rate)

    def set_rate(self, rate: float) -> None:
        """Change the rate; what is reserved stays."""
        self._rate, rate = rate, rate * self.share
        self._late = _LATE if rate <= _FAST else _LATE_IF_FAST
        self._apart = (1 + self._late) / rate
        self._most = max(1, int(rate * _AHEAD))

    def wait(self, now: float) -> float:
        """Return the seconds until a request may be sent; 0 or less for now.

        Infinite while turns are being reserved, and where the lease has ended: somebody wakes the
        poller when that changes.
        """
        if now >= self._lease.until:
            return math.inf
        self._drop_missed(now)
        if not self._asked and 2 * sum(left for *_, left in self._turns) <= self._size:
            self._asked = True
            self._ask()
        return self._turns[0][0] - now if self._turns else math.inf

    def wait_to_poll(self, now: float) -> float:
        """Return the seconds until a poll may be sent, after the slot that is held for others."""
        return max(self.wait(now), self._held_until - now)

    def sent(self, now: float, *, poll: bool) -> None:
        """Count a request that is sent now."""
        del now
        self._polls_next = not poll
        if not poll:
            self._held_until = -math.inf
        first, apart, left = self._turns.popleft()
        if left > 1:
            self._turns.appendleft((first + apart, apart, left - 1))

    def wish(self) -> tuple[int, float]:
        """Return how many turns to reserve, and how many seconds apart.

        Twice as many as before where all of those were taken, half as many where some were missed:
        what one exporter reserves and does not use, nobody does.
        """
        self._size = max(1, self._size // 2) if self._missed else min(self._most, 2 * self._size)
        self._missed = False
        return self._size, self._apart

    def granted(self, first: float, slots: int, apart: float) -> None:
        """Take turns, of which the first is at `first`."""
        self._asked = False
        self._turns.append((first, apart, slots))

    def refused(self) -> None:
        """Ask again when turns are needed the next time."""
        self._asked = False

    def _drop_missed(self, now: float) -> None:
        too_late = now - self._late
        while self._turns and self._turns[0][0] < too_late:
            first, apart, left = self._turns.popleft()
            missed = min(left, math.ceil((too_late - first) / apart))
            self._missed = True
            if left > missed:
                self._turns.appendleft((first + missed * apart, apart, left - missed))
