"""Finished calls that wait to be told of."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from exporter.metrics.mqtt import MqttKind, MqttMetrics, MqttOutcome

MOST: Final = 1_000
"""Calls that wait, for a broker that is away; of more, the oldest are dropped."""

AT_A_TIME: Final = 100
"""Calls that are taken at a time."""


class Events:
    """Finished calls that are to be told of, by their rows in the ledger: the newest of them.

    Args:
        metrics: where those that are dropped are counted.
    """

    def __init__(self, metrics: MqttMetrics) -> None:
        self._metrics = metrics
        self._rows: deque[int] = deque()
        self.come = asyncio.Event()

    def add(self, row: int) -> None:
        """Have a call told of; where too many wait, the oldest is dropped."""
        if len(self._rows) >= MOST:
            self._rows.popleft()
            self.drop(1)
        self._rows.append(row)
        self.come.set()

    def take(self) -> list[int]:
        """Return the oldest of them, which wait no more; empty where there are none."""
        taken = [self._rows.popleft() for _ in range(min(AT_A_TIME, len(self._rows)))]
        if not self._rows:
            self.come.clear()
        return taken

    def put_back(self, rows: Sequence[int]) -> None:
        """Have calls wait again, before all others."""
        room = MOST - len(self._rows)
        kept = rows[max(0, len(rows) - room) :]
        self.drop(len(rows) - len(kept))
        self._rows.extendleft(reversed(kept))

    def drop(self, calls: int) -> None:
        """Count calls that nobody will be told of."""
        self._metrics.count(MqttKind.EVENT, MqttOutcome.DROPPED, calls)
