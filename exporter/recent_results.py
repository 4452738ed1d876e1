"""Recent results of calls, for the status page and Home Assistant; memory is bounded. Pure.

Calls are counted when their result is durable. At the start, recent calls are read from the ledger.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple, TypeVar

from exporter.calls import Result, Status
from exporter.ids import Kind
from exporter.ledger.types import FinishedCall

K = TypeVar("K")
V = TypeVar("V")

MINUTES: Final = 60
NEWEST: Final = 10
"""Number of failures to keep per account."""


class Minute(NamedTuple):
    """Numbers of calls and messages that finished in the minute that starts at Unix time `at`."""

    at: float
    success: int = 0
    failure: int = 0
    unknown: int = 0
    answered: int = 0
    messages: int = 0

    @property
    def finished(self) -> int:
        """The number of finished calls and messages."""
        return self.success + self.failure + self.unknown

    @property
    def calls(self) -> int:
        """The number of finished calls, without messages."""
        return self.finished - self.messages


@dataclass(frozen=True, slots=True)
class Recent:
    """The recent results of an account at a given time."""

    # Calls and messages that finished since `since`; messages have no status.
    today: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    since: float = 0.0  # last midnight, or the start of complete data if later (Unix time)
    minutes: tuple[Minute, ...] = ()  # the last 60, oldest first
    failures: tuple[FinishedCall, ...] = ()  # what did not succeed, newest first

    @property
    def results(self) -> Counter[str]:
        """The number of today's calls and messages by result."""
        return _sums((result, count) for (result, _), count in self.today.items())

    @property
    def statuses(self) -> Counter[str]:
        """The number of today's calls by status."""
        return _sums((status, count) for (_, status), count in self.today.items() if status)


@dataclass(slots=True)
class _History:
    """The results of an account, complete since a Unix time."""

    since: float
    # By midnight and by minute number. Twice as many as shown are kept, because results may be
    # late and clocks wrong.
    days: dict[float, Counter[tuple[str, str | None]]] = field(default_factory=dict)
    minutes: dict[int, Counter[str]] = field(default_factory=dict)
    failures: deque[FinishedCall] = field(default_factory=lambda: deque(maxlen=NEWEST))


def local_midnight(at: float) -> float:
    """Return the start of the day of a Unix time in the local time zone (`TZ`)."""
    day = time.localtime(at)
    return time.mktime((day.tm_year, day.tm_mon, day.tm_mday, 0, 0, 0, 0, 0, -1))


class RecentResults:
    """Collects the recent results of accounts."""

    def __init__(self, midnight: Callable[[float], float] = local_midnight) -> None:
        # Cached for each minute: looking up the time zone takes longer than the rest.
        self._midnight = lru_cache(midnight)
        self._histories: dict[str, _History] = {}

    def needed_since(self, now: float) -> float:
        """Return the Unix time from which `load` needs calls."""
        return min(self._midnight(now), now - MINUTES * 60)

    def load(self, accounts: Iterable[str], calls: Iterable[FinishedCall], since: float) -> None:
        """Replace the results of accounts by all their calls since a Unix time, oldest first."""
        for account in accounts:
            self._histories[account] = _History(since)
        for call in calls:
            self.add(call)

    def forget(self, account: str) -> None:
        self._histories.pop(account, None)

    def add(self, call: FinishedCall) -> None:
        """Count a finished call or message, if its account was loaded."""
        if (history := self._histories.get(call.account)) is None:
            return
        if call.result != Result.SUCCESS:
            history.failures.append(call)
        number = int(call.finished_at // 60)
        day = _counter(history.days, self._midnight(number * 60), 2)
        is_message = call.kind == Kind.MESSAGE
        day[call.result, None if is_message else call.status] += 1
        minute = _counter(history.minutes, number, 2 * MINUTES)
        minute[call.result] += 1
        minute["messages"] += is_message
        minute["answered"] += call.status == Status.ANSWERED

    def recent(self, account: str, now: float) -> Recent:
        history = self._histories.get(account) or _History(0.0)
        midnight, minute = self._midnight(now), int(now // 60)
        return Recent(
            Counter(history.days.get(midnight, ())),
            max(midnight, history.since),
            tuple(
                Minute(number * 60.0, **history.minutes.get(number, Counter[str]()))
                for number in range(minute - MINUTES + 1, minute + 1)
            ),
            tuple(reversed(history.failures)),
        )


def _sums(counts: Iterable[tuple[K, int]]) -> Counter[K]:
    sums = Counter[K]()
    for key, count in counts:
        sums[key] += count
    return sums


def _counter(held: dict[K, Counter[V]], key: K, limit: int) -> Counter[V]:
    """Return the counter of a key; beyond the limit, a new one replaces the oldest one."""
    if key not in held:
        if len(held) >= limit:
            del held[next(iter(held))]
        held[key] = Counter()
    return held[key]
