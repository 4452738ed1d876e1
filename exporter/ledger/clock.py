"""The ledger's clock, by which every time in the ledger is written, and every age is reckoned.

It says what the machine's says, as long as nobody sets that one. Where it is set, by a second or
more, the ledger's goes on as if it had not been: while the exporter runs, and while it is stopped,
because the ledger remembers what both said. Exporters that share a ledger go by its server's clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import structlog

LEAST_STEP: Final = 1.0
"""Seconds by which a clock has to be set to be noticed: more than a thread is kept waiting between
reading one clock and the other, as a rule, and less than any age that matters."""

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")

_log = structlog.get_logger(__name__)


class Moment(NamedTuple):
    """What the machine's clocks say."""

    wall: float  # Unix time; may be set at any time, to anything
    steady: float  # seconds since some moment of this boot; cannot be set
    boot: str  # names the boot; empty where that cannot be told


Clocks = Callable[[], Moment]


def machine_clocks() -> Clocks:
    """Return what reads this machine's clocks."""
    steady, boot = time.CLOCK_MONOTONIC, ""
    # It counts the time that the machine is suspended, too. Not every system has it.
    with suppress(AttributeError, OSError):
        time.clock_gettime(time.CLOCK_BOOTTIME)
        steady = time.CLOCK_BOOTTIME
    with suppress(OSError):
        boot = _BOOT.read_text().strip()
    return lambda: Moment(time.time(), time.clock_gettime(steady), boot)


class Mark(NamedTuple):
    """How far the ledger's clock was ahead of the machine's, in seconds, and when."""

    ahead: float
    at: Moment


def step(before: Moment, now: Moment) -> float:
    """Return by how many seconds the wall clock was set within a boot; 0.0 where it was not."""
    found = (now.wall - now.steady) - (before.wall - before.steady)
    return found if abs(found) >= LEAST_STEP else 0.0


def resumed(mark: Mark, now: Moment) -> float:
    """Return how far the ledger's clock is ahead of the machine's, in seconds, at a start."""
    ahead, at = mark
    if now.boot and now.boot == at.boot and now.steady >= at.steady:
        return ahead - step(at, now)
    # Another boot, or another machine: only the wall clock can tell how long that took. It cannot
    # have been less than nothing; and where the ledger's clock was ahead, because the wall clock
    # was behind, that may have been put right meanwhile.
    passed = now.wall - at.wall
    return ahead - passed if passed < 0 else min(ahead, max(0.0, ahead - passed))


class LedgerClock:
    """The ledger's clock; for any thread. `clocks` reads those of the machine."""

    def __init__(self, clocks: Clocks | None = None) -> None:
        self._clocks = clocks or machine_clocks()
        self._last = self._clocks()
        self._ahead = 0.0
        self._lock = threading.Lock()

    @property
    def ahead(self) -> float:
        """By how many seconds it is ahead of the machine's: 0.0 as long as nobody sets that."""
        return self._ahead

    def now(self) -> float:
        """Return the time (Unix time, if the machine's clock was right)."""
        ahead, at = self.mark()
        return at.wall + ahead

    def mark(self) -> Mark:
        """Return what the ledger is to remember."""
        with self._lock:
            now = self._clocks()
            found, self._last = step(self._last, now), now
            self._ahead -= found
            mark = Mark(self._ahead, now)
        if found:
            _log.warning("clock jump detected", seconds=round(found, 1))
        return mark

    def move(self, seconds: float) -> None:
        """Set it forward, or back."""
        with self._lock:
            self._ahead += seconds
