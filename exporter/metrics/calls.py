"""The metrics of finished calls: the ledger's totals, projected on the user's labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from exporter.calls import ENDINGS, Key
from exporter.ledger.records import SeriesChanges
from exporter.ledger.totals import DELAY_BUCKETS, DURATION_BUCKETS, SUM, Cell, Total
from exporter.metrics.families import Buckets, Family, counter, histogram


class CallMetrics:
    """Calls by result, their durations and key presses.

    Args:
        accounts: the accounts that are configured; others are not shown.
        names: `watch.labels`, in that order.

    Made anew when any of them changes. The ledger's totals keep the whole sets of labels, within
    `watch.max_label_values` and `watch.max_label_sets`.
    """

    def __init__(self, accounts: Iterable[str], names: tuple[str, ...]) -> None:
        self._accounts = frozenset(accounts)
        self._names = names
        self._started: set[tuple[str, int | None]] = set()
        self._by_row: dict[int, tuple[str, ...]] = {}
        # The values of the sets that have series, by account and row, and how many have the same.
        self._shown_as: dict[tuple[str, int | None], tuple[str, ...]] = {}
        self._alike = Counter[tuple[str, tuple[str, ...]]]()
        survives = "Kept in the ledger: survives restarts."
        self.finished = counter(
            "esms_calls_total",
            "Finished calls, counted once when the result is committed. result: did the carrier "
            f"deliver the call; status: what the callee did. {survives}",
            "account",
            "result",
            "status",
            *names,
        )
        self.duration = histogram(
            "esms_call_duration_seconds",
            f"Duration of answered calls, observed when the result is committed. {survives}",
            DURATION_BUCKETS,
            "account",
            *names,
        )
        self.keypresses = counter(
            "esms_call_keypresses_total",
            "Finished calls whose callee pressed a key, by the first key, counted when the result "
            f"is committed. {survives}",
            "account",
            "key",
            *names,
        )

        self.result_delay = histogram(
            "esms_call_result_delay_seconds",
            "Time from the moment a call was watched to its result, observed when the result is "
            f"committed. {survives}",
            DELAY_BUCKETS,
            "account",
        )
        self.price = counter(
            "esms_call_price_vnd_total",
            "Prices of finished calls, in VND, as the provider's callback told them, added when "
            f"both are committed. {survives}",
            "account",
            *names,
        )
        for account in self._accounts:
            self.result_delay.labels(account)
            self.start(account)

    @property
    def label_sets(self) -> Collection[int]:
        """The rows of the sets of labels that were learnt."""
        return self._by_row.keys()

    def labels(self, row: int) -> Mapping[str, str]:
        """Return a set of labels as it is shown, by its row; nothing where it is not known."""
        labels = zip(self._names, self._by_row.get(row, ()), strict=False)
        return {name: value for name, value in labels if value}

    def families(self) -> Iterator[Family[Any]]:  # Any: of values or of buckets
        """Yield the metrics."""
        yield from (self.finished, self.duration, self.keypresses, self.result_delay, self.price)

    def learn(self, row: int, labels: Mapping[str, str]) -> None:
        """Know a set of labels by its row."""
        self._by_row[row] = tuple(labels.get(name, "") for name in self._names)

    def start(self, account: str, row: int | None = None) -> None:
        """Make the series of an account's calls with that set of labels, or with none, at 0."""
        if account not in self._accounts or (account, row) in self._started:
            return
        self._started.add((account, row))
        values = self._values(account, row)
        for result, status in ENDINGS:
            self.finished.labels(account, result.value, status.value, *values)
        self.duration.labels(account, *values)
        self.price.labels(account, *values)
        for key in Key:
            self.keypresses.labels(account, key.value, *values)

    def change_series(self, changes: SeriesChanges) -> None:
        """Make the series of sets that have begun, and drop those of sets that were evicted.

        A series that a set still has stays.
        """
        for account, row in changes.begun:
            self.start(account, row)
        for account, row in changes.evicted:
            self._started.discard((account, row))
            values = self._shown_as.pop((account, row), None)
            if values is not None:
                self._alike[account, values] -= 1
                if not self._alike[account, values]:
                    del self._alike[account, values]
                    self._drop(account, values)
            if not any((other, row) in self._shown_as for other in self._accounts):
                self._by_row.pop(row, None)

    def add(self, cells: Iterable[tuple[Cell, float]]) -> None:
        """Add what finished calls added to the ledger's totals."""
        for (account, row, total, cell), amount in cells:
            if account not in self._accounts:
                continue
            values = self._shown_as.get((account, row)) or self._values(account, row)
            if total is Total.CALLS:
                result, status = cell.split("/")
                self.finished.labels(account, result, status, *values).value += amount
            elif total is Total.KEYPRESSES:
                self.keypresses.labels(account, cell, *values).value += amount
            elif total is Total.PRICE:
                self.price.labels(account, *values).value += amount
            elif total is Total.DURATION:
                _add(self.duration.labels(account, *values), cell, amount)
            else:
                _add(self.result_delay.labels(account), cell, amount)

    def _values(self, account: str, row: int | None) -> tuple[str, ...]:
        if (values := self._shown_as.get((account, row))) is None:
            values = self._by_row[row] if row is not None else ("",) * len(self._names)
            self._shown_as[account, row] = values
            self._alike[account, values] += 1
        return values

    def _drop(self, account: str, values: tuple[str, ...]) -> None:
        for result, status in ENDINGS:
            self.finished.drop(account, result.value, status.value, *values)
        self.duration.drop(account, *values)
        self.price.drop(account, *values)
        for key in Key:
            self.keypresses.drop(account, key.value, *values)


def _add(series: Buckets, cell: str, amount: float) -> None:
    if cell == SUM:
        series.sum += amount
    else:
        series.add(cell, amount)
