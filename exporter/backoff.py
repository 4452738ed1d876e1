"""Exponential back-off after consecutive failures. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExponentialBackoff:
    """A wait that doubles with each failure."""

    first: float  # seconds
    longest: float
    jitter: float = 0.0  # maximum share by which a wait is shortened at random, to spread retries

    def wait(self, failures: int, chance: float = 0.0) -> float:
        """Return the seconds to wait after consecutive failures; `chance` is from 0 to 1."""
        # 2.0**64 exceeds every `longest`, and larger exponents would overflow.
        wait = min(self.longest, self.first * 2.0 ** min(failures - 1, 64))
        return wait * (1.0 - self.jitter * chance)
