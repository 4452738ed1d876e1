"""Schedules of canary calls. Pure: times are parameters, as Unix times.

Due times depend only on the configuration: exporters that share a ledger agree on them, also after
a restart, without stored state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, tzinfo
from itertools import count, takewhile
from typing import Final, TypeAlias

from cronsim import CronSim

from exporter.config import CanaryConfig

# The grace period: a share of the time to the next due time, within bounds in seconds.
_GRACE: Final = 0.1
_MIN_GRACE: Final = 60.0
_MAX_GRACE: Final = 600.0


@dataclass(frozen=True, slots=True)
class Every:
    """Due at every multiple of `seconds` since the Unix epoch."""

    seconds: float

    def after(self, moment: float) -> Iterator[int]:
        """Yield the due times after a moment, endlessly."""
        interval = round(self.seconds)
        return count(self.last(moment) + interval, interval)

    def last(self, moment: float) -> int:
        """Return the last due time up to a moment."""
        interval = round(self.seconds)
        return int(moment // interval) * interval


@dataclass(frozen=True, slots=True)
class Cron:
    """Due at the times of a cron expression.

    Clock changes are handled as in Debian's cron: due times in a skipped hour are due right after
    it; due times in a repeated hour are due once, the first time.
    """

    expression: str
    zone: tzinfo

    def after(self, moment: float) -> Iterator[int]:
        # Start two hours earlier, because local time may repeat when the clocks change.
        start = datetime.fromtimestamp(moment - 7200, self.zone)
        last = moment
        for found in CronSim(self.expression, start):
            due = int(found.timestamp())
            if due > last:
                last = due
                yield due

    def last(self, moment: float) -> int:
        """Return the last due time up to a moment; 0 if there was none in five years."""
        for back in (7200, 2 * 86_400, 40 * 86_400, 400 * 86_400, 5 * 366 * 86_400):
            past = takewhile(lambda due: due <= moment, self.after(moment - back))
            if last := next(iter(deque(past, maxlen=1)), 0):
                return last
        return 0


Schedule: TypeAlias = Every | Cron


def schedule_of(canary: CanaryConfig) -> Schedule:
    return Every(canary.every) if canary.every else Cron(canary.cron or "", canary.zone)


def grace(schedule: Schedule, due: int) -> float:
    """Return the seconds after a due time in which the call may be placed."""
    interval = next(schedule.after(due), due) - due
    return min(_MAX_GRACE, max(_MIN_GRACE, _GRACE * interval))
