"""A day of calls: when they are placed, and how long they live. The same ones for the same seed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final, NamedTuple

DAY: Final = 86_400.0
NEVER: Final = math.inf


class Life(NamedTuple):
    """A call: when it is placed, in seconds since midnight, and how many seconds it lives."""

    placed: float
    lives: float


def ringing(chance: random.Random) -> float:
    """Return how long a call lives that is placed once: it rings, is talked to, is reported."""
    return chance.uniform(2, 25) + min(120.0, chance.lognormvariate(3.0, 0.6))


def retried(chance: random.Random) -> float:
    """Return how long a call lives that the provider places again, up to five times in an hour."""
    wait = chance.choice((60, 120, 300, 600))
    retries = min(5, 1 + int(chance.expovariate(0.8)))
    return sum(ringing(chance) for _ in range(retries + 1)) + wait * retries


def otp(chance: random.Random, _: float) -> float:
    """Return the life of a call with a one-time password: short, nearly always."""
    kind = chance.random()
    if kind < 0.001:
        return NEVER
    if kind < 0.006:
        return chance.lognormvariate(8.5, 0.8)  # hours
    return retried(chance) if kind < 0.03 else ringing(chance)


def reminder(chance: random.Random, _: float) -> float:
    """Return the life of a reminder: two in five are not answered at first, and retried."""
    kind = chance.random()
    if kind < 0.002:
        return NEVER
    if kind < 0.012:
        return chance.lognormvariate(8.5, 0.8)
    return retried(chance) if kind < 0.4 else ringing(chance)


def slow(chance: random.Random, placed: float) -> float:
    """Return the life of a call on a day when the provider is slow, from 10:00 to 16:00."""
    lives = otp(chance, placed)
    return 30 + 4 * lives if 36_000 <= placed < 57_600 else lives


class Kind(NamedTuple):
    """The calls of an account: how many in a day, and how long one lives that is placed then."""

    name: str
    calls: int
    lives: Callable[[random.Random, float], float]


KINDS: Final = (
    Kind("OTP", 10_000, otp),
    Kind("reminders", 5_000, reminder),
    Kind("slow day", 10_000, slow),
    Kind("small", 300, otp),
)


def day(kind: Kind, seed: int) -> list[Life]:
    """Return an account's calls in the order in which they are placed, most of them by day."""
    chance = random.Random(f"{kind.name} {seed}")
    placed = sorted(chance.triangular(0, DAY, DAY * 14 / 24) for _ in range(kind.calls))
    return [Life(at, kind.lives(chance, at)) for at in placed]
