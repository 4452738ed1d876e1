"""Schedules of canary calls. Pure: times are parameters, as Unix times.

Due times depend only on the configuration, so that exporters that share a ledger, or were
restarted, agree on them without stored state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Final, TypeAlias

from cronsim import CronSim

from exporter.config import CanaryConfig

_GRACE: Final = 0.1
_LEAST_GRACE = 60.0
_MOST_GRACE: Final = 600.0


@dataclass(frozen=True, slots=True)
class Every:
    """Due at every multiple of `seconds` since the Unix epoch."""

    seconds: float

    def after(self, moment: float) -> Iterator[int]:
        """Yield the due times after a moment, endlessly."""
        apart = round(self.seconds)
        due = int(moment // apart) * apart
        while True:
            due += apart
            yield due

    def last(self, moment: float) -> int:
        """Return the last due time up to a moment."""
        apart = round(self.seconds)
        return int(moment // apart) * apart


@dataclass(frozen=True, slots=True)
class Cron:
    """Due at the times of a cron expression.

    When the clocks change, as in Debian's cron: due times in a skipped hour are due right after
    it; due times in a repeated hour are due once, the first time.
    """

    expression: str
    zone: tzinfo

    def after(self, moment: float) -> Iterator[int]:
        """Yield the due times after a moment."""
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
            last = 0
            for due in self.after(moment - back):
                if due > moment:
                    break
                last = due
            if last:
                return last
        return 0


Schedule: TypeAlias = Every | Cron


def schedule_of(canary: CanaryConfig) -> Schedule:
    """Return the schedule of a canary."""
    return Every(canary.every) if canary.every else Cron(canary.cron or "", canary.zone)


def grace(schedule: Schedule, due: int) -> float:
    """Return the seconds after a due time in which the call may be placed.

    A tenth of the time to the next due time, at least 1 and at most 10 minutes.
    """
    apart = next(schedule.after(due), due) - due
    return min(_MOST_GRACE, max(_LEAST_GRACE, _GRACE * apart))
