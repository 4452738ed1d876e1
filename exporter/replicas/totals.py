"""The totals that exporters share, as one of them shows them."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from itertools import chain
from typing import Final

from exporter.call_totals import CallTotals
from exporter.calls import Result, Status
from exporter.ledger.records import Changes, Snapshot
from exporter.ledger.totals import Cell, Total
from exporter.tracker import CallTracker

_LATE: Final = 60.0
"""Seconds by which the clocks of exporters may differ, and a result may be committed late, for a
call that failed to be found."""

_FORGOTTEN: Final = 1_800.0
"""Seconds after which what was evicted may be forgotten: all totals are read again then."""

_Ended = tuple[str, str, tuple[tuple[str, str], ...]]
"""An account, how calls ended, and the labels of their series."""

Read = Callable[[int, Collection[int]], Awaitable[Changes]]


class SharedTotals:
    """Shows what this exporter and the others add to the totals.

    Args:
        read: see `Sharing.changes`.
        calls: where it is shown.
    """

    def __init__(self, read: Read, calls: CallTracker) -> None:
        self._read = read
        self._calls = calls
        # By account and set of labels.
        self._shown: defaultdict[tuple[str, int], dict[Cell, float]] = defaultdict(dict)
        self._since = 0
        self._began = object()  # another one where all totals are shown anew
        self._followed = time.monotonic()
        self._looked = time.time()
        self._failed = False  # whether calls have failed that are still to be found

    def begin_with(self, snapshot: Snapshot) -> None:
        """Show what changes from here on: the rest is shown already."""
        self._began = object()
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
        metrics, began, asked = self._calls.totals, self._began, time.monotonic()
        since = self._since if asked - self._followed < _FORGOTTEN else 0
        changes = await self._read(since, metrics.label_sets)
        if began is not self._began:
            return  # begun anew meanwhile, from a snapshot that does not know these sets of labels
        self._since, self._followed = changes.since, asked
        if not since:
            changes.series.evicted.extend(self._unknown(changes))
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
        begun, evicted = changes.series
        changed = {*begun, *evicted}
        totals = {
            cell: value
            for cell, value in snapshot.totals.items()
            if (cell.account, cell.labels) not in changed
        }
        newest = Changes(
            changes.series,
            totals | changes.totals,
            snapshot.label_sets | changes.label_sets,
            changes.since,
        )
        series = snapshot.begun.difference(evicted).union(begun)
        evicted.extend(self._unknown(newest))
        self._show(newest)
        return Snapshot(newest.label_sets, newest.totals, series, newest.since)

    def _unknown(self, complete: Changes) -> set[tuple[str, int]]:
        """Return the sets that are shown, and of which there is no total any more."""
        totals = {(cell.account, cell.labels) for cell in complete.totals}
        return self._shown.keys() - totals.union(complete.series.begun)

    def _show(self, changes: Changes) -> None:
        metrics = self._calls.totals
        self._calls.learn(changes.label_sets)
        removed: dict[Cell, float] = {}
        for key in chain(*changes.series):
            removed |= self._shown.pop(key, {})
        before = _finished(removed, metrics)
        metrics.add((cell, -value) for cell, value in removed.items())
        metrics.change_series(changes.series)
        added: dict[Cell, float] = {}
        for cell, value in changes.totals.items():
            key = cell.account, cell.labels
            amount = value - self._shown[key].get(cell, 0.0)
            if amount <= 0:
                continue
            self._shown[key][cell] = value
            metrics.start(*key)
            added[cell] = amount
        metrics.add(added.items())
        self._count(before, _finished(added, metrics))

    def _count(self, before: Counter[_Ended], after: Counter[_Ended]) -> None:
        """Have people see the calls that finished."""
        now = time.time()
        for (account, ending, labels), number in after.items():
            shown = before[account, ending, labels]
            # As Prometheus does: a set that was evicted and returned has begun at 0.
            if finished := number - shown if number >= shown else number:
                result, status = map(str, ending.split("/"))
                self._failed |= result != Result.SUCCESS
                self._calls.histories.count(account, Result(result), Status(status), finished, now)


def _finished(totals: Mapping[Cell, float], metrics: CallTotals) -> Counter[_Ended]:
    found = Counter[_Ended]()
    for cell, value in totals.items():
        if cell.total is Total.CALLS:
            labels = tuple(metrics.labels(cell.labels).items())
            found[cell.account, cell.cell, labels] += int(value)
    return found
