"""Which claimed notification is sent next: fair turns on a target's connections. Pure.

Times are seconds of the monotonic clock.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from typing import Final

from exporter.ledger.outbox import Notification

_RETRIES: Final = 4
"""Retries have this part of the connections where new events wait."""


class SendQueue:
    """Claimed notifications that wait for a connection.

    New events go before retries. Where new ones wait, retries have a quarter of the connections,
    and of their time where there are fewer than four; else half of them, so that there is room when
    new ones come. Within each kind, the account that holds the fewest connections is next, and of
    several the one whose turn is longest ago. Where there are several accounts, the last connection
    is for one that holds none: events that hang leave others their share.

    Args:
        connections: attempts that may be under way.
    """

    def __init__(self, connections: int) -> None:
        self._connections = connections
        self._waiting: dict[bool, dict[str, deque[Notification]]] = {False: {}, True: {}}
        self._under_way: Counter[str] = Counter()
        self._retries = 0  # of what is under way
        self._retry_at = 0.0
        self._turns: defaultdict[str, int] = defaultdict(int)  # the last one of each account
        self._turn = 0

    def add(self, claimed: Iterable[Notification]) -> None:
        """Add claimed notifications."""
        for one in claimed:
            self._waiting[one.retry].setdefault(one.call.account, deque()).append(one)

    def __len__(self) -> int:
        """Return how many wait."""
        return sum(len(queue) for kind in self._waiting.values() for queue in kind.values())

    def waiting(self, *, retry: bool) -> dict[str, int]:
        """Return how many wait, by account."""
        return {account: len(queue) for account, queue in self._waiting[retry].items()}

    def next(self, now: float) -> Notification | None:
        """Remove and return the notification to send now; None for none."""
        free = self._connections - self._under_way.total()
        if free <= 0:
            return None
        new, retries = self._waiting[False], self._waiting[True]
        share = self._connections // (_RETRIES if new else 2)
        may_retry = self._retries < max(1, share) and (now >= self._retry_at or not new)
        queues = retries if retries and may_retry else new
        if not queues:
            return None
        account = min(queues, key=lambda name: (self._under_way[name], self._turns[name]))
        if self._under_way[account] and free == 1 and len(self._turns) > 1:
            return None
        one = queues[account].popleft()
        if not queues[account]:
            del queues[account]
        self._turn += 1
        self._turns[account] = self._turn
        self._under_way[account] += 1
        self._retries += one.retry
        return one

    def done(self, one: Notification, seconds: float, now: float) -> None:
        """Record that an attempt has ended, and how long it took."""
        self._under_way[one.call.account] -= 1
        self._retries -= one.retry
        if one.retry:
            share = max(1.0, _RETRIES / self._connections)
            self._retry_at = now + (share - 1) * seconds

    def clear(self, *, retry: bool) -> list[Notification]:
        """Remove and return those that wait."""
        queues, self._waiting[retry] = self._waiting[retry], {}
        return [one for queue in queues.values() for one in queue]
