"""What keeps the calls that sources hand over, in place of the tracker and its ledger."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from exporter.errors import LedgerError
from exporter.ledger.types import Count, NewCall
from exporter.tracker import CallTracker


class Sink(CallTracker):
    """Keeps calls in memory.

    Attributes:
        named: the ids that each source names; those that no source keeps naming have the key None.
        offered: the ids of every call that was handed over, in order.
        added: how often calls were handed over.
        room: how many calls there is room for.
        broken: the ledger fails.
    """

    def __init__(self) -> None:  # a ledger is not made
        self.named = defaultdict[str | None, set[str]](set)
        self.offered: list[str] = []
        self.added = 0
        self.room = 100_000
        self.broken = False
        self.cursors: dict[str, tuple[str, float]] = {}

    async def add(
        self, source: str | None, calls: Iterable[NewCall]
    ) -> tuple[set[int], Counter[str]]:
        refused, rows = Counter[str](), set()
        self.added += 1
        for call in calls:
            self.offered.append(call.reference_id)
            known = call.reference_id in self.named[source]
            if not known and sum(map(len, self.named.values())) >= self.room:
                refused[call.account] += 1
                continue
            rows.add(hash(call.reference_id))
            if not self.broken:
                self.named[source].add(call.reference_id)
        self._fail()
        return rows, refused

    async def push(self, requests: Sequence[Sequence[NewCall]]) -> Sequence[Count | str]:
        self._fail()
        return [Count(len((await self.add(None, calls))[0]), 0) for calls in requests]

    async def keep_only(self, source: str, rows: set[int]) -> None:
        self._fail()
        self.named[source] = {name for name in self.named[source] if hash(name) in rows}

    async def sources(self) -> list[str]:
        return ["config", *(source for source, ids in self.named.items() if source and ids)]

    async def cursor(self, source: str, query: str) -> float | None:
        known, read_until = self.cursors.get(source, ("", 0.0))
        return read_until if known == query else None

    async def move_cursor(self, source: str, query: str, read_until: float) -> None:
        self.cursors[source] = query, read_until

    def _fail(self) -> None:
        if self.broken:
            raise LedgerError("the disk is full")
