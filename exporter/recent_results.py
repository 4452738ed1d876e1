"""What has become of calls lately, for people who look: bounded, and pure. Time comes in.

Counted when a result is durable, as the metrics are; taken up again from the ledger at the start.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

from exporter.calls import Result, Status
from exporter.ledger.types import FinishedCall

K = TypeVar("K")
V = TypeVar("V")

MINUTES: Final = 60
NEWEST: Final = 10
"""Failures that are kept of each account."""


class Minute(NamedTuple):
    """The calls that finished within a minute, which begins `at` (Unix time)."""

    at: float
    success: int = 0
    failure: int = 0
    unknown: int = 0
    answered: int = 0

    @property
    def finished(self) -> int:
        """All of them."""
        return self.success + self.failure + self.unknown


@dataclass(frozen=True, slots=True)
class Recent:
    """What has become of an account's calls, as it stands at a moment.

    Attributes:
        today: finished calls since midnight, or since `since` if that is later.
        since: from when on all are counted (Unix time).
        minutes: the last 60, the current one last.
        failures: the newest calls that did not succeed, the newest first.
    """

    today: Counter[tuple[Result, Status]] = field(default_factory=Counter)
    since: float = 0.0
    minutes: tuple[Minute, ...] = ()
    failures: tuple[FinishedCall, ...] = ()

    def of_result(self, result: Result) -> int:
        """Return how many of today's calls ended like that."""
        return sum(count for (found, _), count in self.today.items() if found == result)

    def of_status(self, status: Status) -> int:
        """Return of how many of today's calls that was the status."""
        return sum(count for (_, found), count in self.today.items() if found == status)

    def share(self, part: int) -> float | None:
        """Return a part of today's calls as a share of all; None where there are none."""
        total = self.today.total()
        return part / total if total else None


class History:
    """What has become of one account's calls.

    Args:
        midnight: returns when the day of a Unix time began, where people look.
        since: from when on all calls are counted (Unix time).
    """

    def __init__(self, midnight: Callable[[float], float], since: float = 0.0) -> None:
        self._midnight = midnight
        self._since = since
        # By their midnights, and by their numbers. Twice as many as are shown, because results may
        # come late and clocks go wrong; those that came first go.
        self._days: dict[float, Counter[tuple[Result, Status]]] = {}
        self._minutes: dict[int, Counter[str]] = {}
        self._failures: deque[FinishedCall] = deque(maxlen=NEWEST)

    def add(self, call: FinishedCall) -> None:
        """Count a call that has finished."""
        if call.result is not Result.SUCCESS:
            self._failures.append(call)
        _counter(self._days, self._midnight(call.finished_at), 2)[call.result, call.status] += 1
        minute = _counter(self._minutes, int(call.finished_at // 60), 2 * MINUTES)
        minute[call.result.value] += 1
        if call.status is Status.ANSWERED:
            minute["answered"] += 1

    def recent(self, now: float) -> Recent:
        """Return what there is to be seen at a Unix time."""
        midnight, minute = self._midnight(now), int(now // 60)
        return Recent(
            Counter(self._days.get(midnight, ())),
            max(midnight, self._since),
            tuple(
                Minute(number * 60.0, **self._minutes.get(number, Counter[str]()))
                for number in range(minute - MINUTES + 1, minute + 1)
            ),
            tuple(reversed(self._failures)),
        )


class Histories:
    """The history of every account."""

    def __init__(self, midnight: Callable[[float], float] | None = None) -> None:
        self._midnight = midnight or local_midnight
        self._of: dict[str, History] = {}

    def start(self, now: float) -> float:
        """Return from when on calls of the past are of interest (Unix time)."""
        return min(self._midnight(now), now - MINUTES * 60)

    def recall(self, accounts: Iterable[str], calls: Iterable[FinishedCall], since: float) -> None:
        """Begin the histories of accounts with all their calls since a Unix time, oldest first."""
        for account in accounts:
            self._of[account] = History(self._midnight, since)
        for call in calls:
            self.add(call)

    def forget(self, account: str) -> None:
        """Forget the history of an account."""
        self._of.pop(account, None)

    def add(self, call: FinishedCall) -> None:
        """Count a call that has finished, of an account whose history has begun."""
        if (history := self._of.get(call.account)) is not None:
            history.add(call)

    def recent(self, account: str, now: float) -> Recent:
        """Return what there is to be seen of an account."""
        return (self._of.get(account) or History(self._midnight)).recent(now)


def _counter(held: dict[K, Counter[V]], key: K, limit: int) -> Counter[V]:
    """Return the counter of a key; the one that was added first makes room for a new one."""
    if key not in held:
        if len(held) >= limit:
            del held[next(iter(held))]
        held[key] = Counter()
    return held[key]


def local_midnight(at: float) -> float:
    """Return when the day of a Unix time began in the zone of the process (`TZ`)."""
    day = time.localtime(at)
    return time.mktime((day.tm_year, day.tm_mon, day.tm_mday, 0, 0, 0, 0, 0, -1))
