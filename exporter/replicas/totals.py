"""The totals that exporters share, as one of them shows them."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

from exporter.account import Account
from exporter.calls import Result, Status
from exporter.ledger.records import Changes, Folded, Snapshot
from exporter.ledger.totals import Cell, Total
from exporter.watching import Watching

_LATE: Final = 60.0
"""Seconds by which the clocks of exporters may differ, and a result may be committed late, for a
call that failed to be found."""

_FORGOTTEN: Final = 1_800.0
"""Seconds after which what was folded may be forgotten: all totals are read again then."""

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
        # By account and set of labels.
        self._shown: defaultdict[tuple[str, int], dict[Cell, float]] = defaultdict(dict)
        self._since = 0
        self._followed = time.monotonic()
        self._looked = time.time()
        self._failed = False  # whether calls have failed that are still to be found

    def begin_with(self, snapshot: Snapshot) -> None:
        """Show what changes from here on: the rest is shown already."""
        self._shown.clear()
        for cell, value in snapshot.totals.items():
            self._shown[cell.account, cell.labels][cell] = value
        self._since = snapshot.since
        self._followed = time.monotonic()

    async def follow(self) -> None:
        """Show what has changed.

        Raises:
            LedgerError: the ledger failed.
        """
        metrics, asked = self._calls.call_metrics, time.monotonic()
        since = self._since if asked - self._followed < _FORGOTTEN else 0
        changes = await self._read(since, metrics.label_sets)
        if metrics is not self._calls.call_metrics:
            return  # begun anew meanwhile, from a snapshot that does not know these sets of labels
        self._since, self._followed = changes.since, asked
        if not since:
            changes.folded.extend(self._unknown(changes))
        self._show(changes)
        if self._failed:
            self._failed = False
            newest = await self._calls.ledger.failures(min(self._looked, time.time()) - _LATE)
            self._calls.histories.show_failures(newest)
        self._looked = time.time()

    async def catch_up(self) -> Snapshot:
        """Return all that the metrics of finished calls are made of: what is shown, or more.

        Raises:
            LedgerError: the ledger failed.
        """
        ledger = self._calls.ledger
        snapshot = await ledger.call(ledger.store.snapshot)
        # Others went on meanwhile, and what they did may be shown already.
        changes = await self._read(snapshot.since, snapshot.label_sets)
        begun = {*changes.folded, *changes.begun}
        totals = {
            cell: value
            for cell, value in snapshot.totals.items()
            if (cell.account, cell.labels) not in begun
        }
        newest = Changes(
            changes.folded,
            changes.begun,
            totals | changes.totals,
            snapshot.label_sets | changes.label_sets,
            changes.since,
        )
        newest.folded.extend(self._unknown(newest))
        self._show(newest)
        return Snapshot(newest.label_sets, newest.totals, newest.since)

    def _unknown(self, complete: Changes) -> set[tuple[str, int]]:
        """Return the sets that are shown, and of which there is no total any more."""
        return self._shown.keys() - {(cell.account, cell.labels) for cell in complete.totals}

    def _show(self, changes: Changes) -> None:
        metrics = self._calls.call_metrics
        self._calls.learn(changes.label_sets)
        added: dict[Cell, float] = {}
        for key in (*changes.folded, *changes.begun):
            for cell, value in self._shown.pop(key, {}).items():
                added[cell] = -value
        metrics.fold(Folded(added, changes.folded))
        for cell, value in changes.totals.items():
            key = cell.account, cell.labels
            amount = value - self._shown[key].get(cell, 0.0)
            if amount <= 0:
                continue
            self._shown[key][cell] = value
            if cell.account in self._accounts:
                metrics.start(*key)
            metrics.add([(cell, amount)])
            added[cell] = added.get(cell, 0.0) + amount
        self._count(added)

    def _count(self, added: Mapping[Cell, float]) -> None:
        """Have people see the calls that finished."""
        finished: Counter[tuple[str, str]] = Counter()
        for cell, amount in added.items():
            if cell.total is Total.CALLS:
                finished[cell.account, cell.cell] += int(amount)
        now = time.time()
        # What was folded was counted before.
        for (account, ending), number in finished.items():
            if number > 0:
                result, status = map(str, ending.split("/"))
                self._failed |= result != Result.SUCCESS
                self._calls.histories.count(account, Result(result), Status(status), number, now)
