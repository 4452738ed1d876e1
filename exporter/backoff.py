"""How long to wait after failures in a row. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExponentialBackoff:
    """A wait that doubles with each failure.

    Attributes:
        first: seconds after the first failure.
        longest: seconds; no wait is longer.
        jitter: the share of a wait that chance may take off, so that not all try at the same time.
    """

    first: float
    longest: float
    jitter: float = 0.0

    def wait(self, failures: int, chance: float = 0.0) -> float:
        """Return the seconds to wait.

        Args:
            failures: in a row, at least 1.
            chance: a random number from 0 to 1.
        """
        # 2.0**64 is beyond any longest wait, and beyond no float.
        wait = min(self.longest, self.first * 2.0 ** min(failures - 1, 64))
        return wait * (1.0 - self.jitter * chance)
