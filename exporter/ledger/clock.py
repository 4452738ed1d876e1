"""The ledger's clock, used for all times and ages in the ledger.

It follows the machine's clock, but ignores jumps of a second or more, also those that happen while
the exporter is stopped: the ledger stores the offset. Exporters that share a ledger use the clock
of its server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import structlog

MIN_STEP: Final = 1.0
"""The smallest jump of a clock to detect, in seconds: longer than a thread normally waits between
reading two clocks, and shorter than any age that matters."""

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")

_log = structlog.get_logger(__name__)


class Moment(NamedTuple):
    """A reading of the machine's clocks."""

    wall: float  # Unix time; may be set
    steady: float  # monotonic time in seconds, including suspension where possible
    boot: str  # the id of this boot; empty if unknown


Clocks = Callable[[], Moment]


def machine_clocks() -> Clocks:
    """Return a function that reads the machine's clocks."""
    steady, boot = time.CLOCK_MONOTONIC, ""
    # CLOCK_BOOTTIME includes the time of suspension. Not every system has it.
    with suppress(AttributeError, OSError):
        time.clock_gettime(time.CLOCK_BOOTTIME)
        steady = time.CLOCK_BOOTTIME
    with suppress(OSError):
        boot = _BOOT.read_text().strip()
    return lambda: Moment(time.time(), time.clock_gettime(steady), boot)


class Mark(NamedTuple):
    """The seconds by which the ledger's clock was ahead of the machine's at a moment."""

    ahead: float
    at: Moment


def step(before: Moment, now: Moment) -> float:
    """Return by how many seconds the wall clock jumped within a boot; 0.0 if it did not."""
    found = (now.wall - now.steady) - (before.wall - before.steady)
    return found if abs(found) >= MIN_STEP else 0.0


def resumed(mark: Mark, now: Moment) -> float:
    """Return the seconds by which the ledger's clock is ahead of the machine's at a start."""
    ahead, at = mark
    if now.boot and now.boot == at.boot and now.steady >= at.steady:
        return ahead - step(at, now)
    # Another boot or machine: only the wall clock shows how much time passed. If it went back, the
    # ledger's clock continues where it was. If the wall clock was behind before, it may have been
    # corrected, so the offset shrinks with the time that passed.
    passed = now.wall - at.wall
    return ahead - passed if passed < 0 else min(ahead, max(0.0, ahead - passed))


class LedgerClock:
    """The ledger's clock; thread-safe. `clocks` reads the machine's clocks."""

    def __init__(self, clocks: Clocks | None = None) -> None:
        self._clocks = clocks or machine_clocks()
        self._last = self._clocks()
        self._ahead = 0.0
        self._lock = threading.Lock()

    @property
    def ahead(self) -> float:
        """Seconds by which it is ahead of the machine's clock; 0.0 if that clock was never set."""
        return self._ahead

    def now(self) -> float:
        """Return the ledger's Unix time."""
        ahead, at = self.mark()
        return at.wall + ahead

    def mark(self) -> Mark:
        """Return the current offset, to be stored in the ledger."""
        with self._lock:
            now = self._clocks()
            found, self._last = step(self._last, now), now
            self._ahead -= found
            mark = Mark(self._ahead, now)
        if found:
            _log.warning("clock jump detected", seconds=round(found, 1))
        return mark

    def resume(self, mark: Mark) -> None:
        """Continue from the mark of an earlier start.

        A jump since this clock was created is a part of the jump since the mark: it counts once.
        """
        with self._lock:
            self._last = self._clocks()
            self._ahead = resumed(mark, self._last)

    def move(self, seconds: float) -> None:
        """Move the clock forward, or back if negative."""
        with self._lock:
            self._ahead += seconds
