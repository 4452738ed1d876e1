"""Whether the wall clock was set. Pure: time comes in."""

from __future__ import annotations

from typing import Final

# More than a thread is kept waiting between reading one clock and the other, as a rule; less than
# any age that matters.
_STRAY: Final = 1.0


class WallClock:
    """Compares the wall clock with the monotonic one; both in seconds.

    Args:
        wall: Unix time.
        steady: the monotonic clock at the same moment.
    """

    def __init__(self, wall: float, steady: float) -> None:
        self._offset = wall - steady

    def step(self, wall: float, steady: float) -> float:
        """Return by how much the wall clock was set since the last look; 0.0 where it was not."""
        offset = wall - steady
        step, self._offset = offset - self._offset, offset
        return step if abs(step) >= _STRAY else 0.0
