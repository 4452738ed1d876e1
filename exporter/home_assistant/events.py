"""Finished calls that wait to be told of."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from exporter.home_assistant.discovery import MqttKind
from exporter.metrics.catalogue import Catalogue

MOST: Final = 1_000
"""Calls that wait, for a broker that is away; of more, the oldest are dropped."""

AT_A_TIME: Final = 100
"""Calls that are taken at a time."""


class MqttOutcome(StrEnum):
    """What became of a message: the label `outcome` of `esms_mqtt_messages_total`."""

    PUBLISHED = "published"  # the broker has it
    FAILED = "failed"  # it is sent again
    DROPPED = "dropped"  # an event that waited for the broker behind too many others


class MqttMetrics:
    """The series of the broker, all at 0."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._messages = {
            (kind, outcome): catalogue.mqtt_messages.labels(kind.value, outcome.value)
            for kind in MqttKind
            for outcome in MqttOutcome
            if kind is MqttKind.EVENT or outcome is not MqttOutcome.DROPPED
        }
        self.connected = catalogue.mqtt_connected.labels()
        self.connection_errors = catalogue.mqtt_errors.labels()

    def count(self, kind: MqttKind, outcome: MqttOutcome, messages: int = 1) -> None:
        """Count messages."""
        self._messages[kind, outcome].inc(messages)


class Waiting(NamedTuple):
    """A finished call that waits: its account, its row in the ledger, and how often it failed."""

    account: str
    row: int
    failures: int = 0


class Events:
    """Finished calls that are to be told of: the newest of them.

    Accounts share the room and the turns: one whose calls finish and finish costs others nothing.

    Args:
        metrics: where those that are dropped are counted.
    """

    def __init__(self, metrics: MqttMetrics) -> None:
        self._metrics = metrics
        self._waiting: dict[str, deque[Waiting]] = {}
        self.come = asyncio.Event()

    def add(self, call: Waiting) -> None:
        """Have a call told of; of too many, the oldest of the busiest account is dropped."""
        self._waiting.setdefault(call.account, deque()).append(call)
        self._make_room()
        self.come.set()

    def take(self) -> list[Waiting]:
        """Return the oldest of each account in turns, which wait no more; empty for none."""
        taken: list[Waiting] = []
        while self._waiting and len(taken) < AT_A_TIME:
            account = next(iter(self._waiting))
            calls = self._waiting.pop(account)
            taken.append(calls.popleft())
            if calls:
                self._waiting[account] = calls  # after the others
        if not self._waiting:
            self.come.clear()
        return taken

    def put_back(self, calls: Sequence[Waiting]) -> None:
        """Have calls wait again, before others of their accounts."""
        for call in reversed(calls):
            self._waiting.setdefault(call.account, deque()).appendleft(call)
        self._make_room()

    def drop(self, calls: int) -> None:
        """Count calls that nobody will be told of."""
        self._metrics.count(MqttKind.EVENT, MqttOutcome.DROPPED, calls)

    def _make_room(self) -> None:
        for _ in range(sum(map(len, self._waiting.values())) - MOST):
            account = max(self._waiting, key=lambda name: len(self._waiting[name]))
            self._waiting[account].popleft()
            if not self._waiting[account]:
                del self._waiting[account]
            self.drop(1)
