"""The totals that exporters share, as one of them shows them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

from exporter.account import Account
from exporter.calls import Result, Status
from exporter.ledger.records import Changes, Snapshot
from exporter.ledger.totals import Cell, Total
from exporter.watching import Watching

_LATE: Final = 60.0
"""Seconds by which the clocks of exporters may differ, and a result may be committed late, for a
call that failed to be found."""

Read = Callable[[int, Collection[int]], Awaitable[Changes]]


class SharedTotals:
    """Shows what this exporter and the others add to the totals.

    Args:
        read: see `Sharing.changes`.
        calls: where it is shown.
        accounts: the accounts that are shown; whoever changes them has it seen here.
    """

    def __init__(self, read: Read, calls: Watching, accounts: Mapping[str, Account]) -> None:
        self._read = read
        self._calls = calls
        self._accounts = accounts
        self._shown: dict[Cell, float] = {}
        self._since = 0
        self._looked = time.time()

    def begin_with(self, snapshot: Snapshot) -> None:
        """Show what changes from here on: the rest is shown already."""
        self._shown, self._since = snapshot.totals, snapshot.since

    async def follow(self) -> None:
        """Show what has changed.

        Raises:
            LedgerError: the ledger failed.
        """
        metrics = self._calls.call_metrics
        changes = await self._read(self._since, metrics.label_sets)
        if metrics is not self._calls.call_metrics:
            return  # begun anew meanwhile, from a snapshot that does not know these sets of labels
        self._since = changes.since
        await self._show(changes)

    async def catch_up(self) -> Snapshot:
        """Return all that the metrics of finished calls are made of: what is shown, or more.

        Raises:
            LedgerError: the ledger failed.
        """
        ledger = self._calls.ledger
        snapshot = await ledger.call(ledger.store.snapshot)
        # Others went on meanwhile, and what they did may be shown already.
        sets = snapshot.label_sets
        await self._show(Changes(snapshot.totals, sets, snapshot.since))
        while new := set(self._calls.call_metrics.label_sets).difference(sets):
            sets |= await ledger.call(ledger.store.label_sets, new)
        return snapshot._replace(totals=self._shown)

    async def _show(self, changes: Changes) -> None:
        metrics = self._calls.call_metrics
        self._calls.learn(changes.label_sets)
        now, failed = time.time(), False
        for cell, value in changes.totals.items():
            added = value - self._shown.get(cell, 0.0)
            if added <= 0:
                continue
            self._shown[cell] = value
            if cell.account in self._accounts:
                metrics.start(cell.account, cell.labels)
            metrics.add([(cell, added)])
            if cell.total is Total.CALLS:
                result, status = map(str, cell.cell.split("/"))
                failed |= result != Result.SUCCESS
                self._calls.histories.count(
                    cell.account, Result(result), Status(status), int(added), now
                )
        if failed:
            ledger = self._calls.ledger
            newest = await ledger.failures(min(self._looked, now) - _LATE)
            self._calls.histories.show_failures(newest)
        self._looked = now
