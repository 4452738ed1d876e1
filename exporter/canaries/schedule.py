"""When canary calls are due. Pure: time comes in, as Unix time.

Due times are derived from the configuration alone: exporters that share a ledger, and one that was
restarted, agree on them without remembering anything.
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
    """Due at every multiple of some seconds since the Unix epoch.

    Attributes:
        seconds: whole ones.
    """

    seconds: float

    def after(self, moment: float) -> Iterator[int]:
        """Yield the due times after a moment, without end."""
        apart = round(self.seconds)
        due = int(moment // apart) * apart
        while True:
            due += apart
            yield due

    def last(self, moment: float) -> int:
        """Return the last due time that is not after a moment."""
        apart = round(self.seconds)
        return int(moment // apart) * apart


@dataclass(frozen=True, slots=True)
class Cron:
    """Due when an expression of cron says so.

    As Debian's cron does it: what is due at a time that the clocks leap over is due right after
    it, and what is due at a time that comes twice is due the first time.
    """

    expression: str
    zone: tzinfo

    def after(self, moment: float) -> Iterator[int]:
        """Yield the due times after a moment."""
        # From well before: by the local clock, which may be set back, times may seem to repeat.
        start = datetime.fromtimestamp(moment - 7200, self.zone)
        last = moment
        for found in CronSim(self.expression, start):
            due = int(found.timestamp())
            if due > last:
                last = due
                yield due

    def last(self, moment: float) -> int:
        """Return the last due time that is not after a moment; 0 where there was none for long."""
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
    """Return when a canary is due."""
    return Every(canary.every) if canary.every else Cron(canary.cron or "", canary.zone)


def grace(schedule: Schedule, due: int) -> float:
    """Return for how many seconds a call that is due may still be placed.

    A tenth of the time to the next one, at least a minute and at most ten.
    """
    apart = next(schedule.after(due), due) - due
    return min(_MOST_GRACE, max(_LEAST_GRACE, _GRACE * apart))
