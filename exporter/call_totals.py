"""The totals of finished calls in memory, which the metrics read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

from exporter.calls import ENDINGS, Key, Result
from exporter.ids import Kind
from exporter.ledger.totals import (
    DELAY_BUCKETS,
    DURATION_BUCKETS,
    SUM,
    CountedCall,
    TotalKey,
    TotalKind,
)
from exporter.ledger.types import Labels, SeriesChanges, Snapshot
from exporter.polling.stats import Distribution

_ZEROS: Final[Mapping[TotalKind, Mapping[tuple[str, ...], float]]] = {
    TotalKind.CALLS: {(result.value, status.value): 0.0 for result, status in ENDINGS},
    TotalKind.KEYPRESSES: {(key.value,): 0.0 for key in Key},
    TotalKind.PRICE: {(): 0.0},
    TotalKind.MESSAGES: {(result.value,): 0.0 for result in Result},
    TotalKind.MESSAGE_PRICE: {(): 0.0},
}


class LabelSetTotals:
    """The totals of an account's finished calls with one label set.

    Attributes:
        counts: the counters, by kind and the values of their other labels.
        durations: durations of answered calls, in seconds.
    """

    __slots__ = ("counts", "durations")

    def __init__(self) -> None:
        self.counts = {total: defaultdict(float, zeros) for total, zeros in _ZEROS.items()}
        self.durations = Distribution(DURATION_BUCKETS)

    def add(self, total: TotalKind, cell: str, amount: float) -> None:
        """Add an increment."""
        if total is TotalKind.DURATION:
            _add(self.durations, cell, amount)
        else:
            self.counts[total][_labels(cell)] += amount

    def merge(self, other: LabelSetTotals) -> None:
        for total, more in other.counts.items():
            for labels, amount in more.items():
                self.counts[total][labels] += amount
        counts = self.durations.counts
        counts[:] = map(sum, zip(counts, other.durations.counts, strict=True))
        self.durations.sum += other.durations.sum


class MessageTotals(NamedTuple):
    """The totals of an account's messages: receivers by result, and the price in VND."""

    delivered: int
    failed: int
    price: float


class CallTotals:
    """The totals of finished calls, by account and row of the label set.

    Only the labels in `watch.labels` are shown; label sets that differ only in other labels are
    shown as one.

    Attributes:
        names: the names of the shown labels, in order.
        delays: seconds from adding a call or message to its result, by kind of total and account;
            of messages, only accounts with messages.
        exemplars: whether the newest call that each series counts is kept.
    """

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.names = names
        self.delays = {
            total: defaultdict[str, Distribution](_new_delays)
            for total in (TotalKind.DELAY, TotalKind.MESSAGE_DELAY)
        }
        self._message_delays = self.delays[TotalKind.MESSAGE_DELAY]
        self._sets: dict[str, defaultdict[int | None, LabelSetTotals]] = {}
        self._labels: dict[int, Labels] = {}
        self.exemplars = False
        # The newest calls, by series: the outer key is the account and the values of the labels in
        # `watch.labels` (delays have none), the inner one is the kind of the total and the values
        # of its other labels, including `le`.
        self._newest: dict[tuple[str, ...], dict[tuple[str, ...], CountedCall]] = {}

    @property
    def accounts(self) -> AbstractSet[str]:
        """The accounts with totals; additions to others are ignored."""
        return self._sets.keys()

    @property
    def label_sets(self) -> Collection[int]:
        """The rows of the known label sets."""
        return self._labels.keys()

    def configure(self, names: tuple[str, ...]) -> None:
        """Change the shown labels; call `show` afterwards."""
        if names != self.names:
            self._newest.clear()
        self.names = names

    def use_exemplars(self, *, enabled: bool) -> None:
        """Keep the newest call that each series counts, or forget all of them."""
        self.exemplars = enabled
        if not enabled:
            self._newest.clear()

    def labels(self, row: int) -> Mapping[str, str]:
        """Return the shown labels of a label set; empty if it is unknown."""
        labels = self._labels.get(row, {})
        return {name: labels[name] for name in self.names if labels.get(name)}

    def show(self, accounts: Collection[str], snapshot: Snapshot) -> None:
        """Replace the totals of accounts by a snapshot of the ledger."""
        for account in sorted(accounts):
            self.delays[TotalKind.DELAY][account] = _new_delays()
            self._sets[account] = defaultdict(LabelSetTotals, {None: LabelSetTotals()})
            if account in self._message_delays:  # all of its messages may be open
                self._message_delays[account] = _new_delays()
        self.learn(snapshot.label_sets)
        for account, row in snapshot.started:
            self.start(account, row)
        self.add(snapshot.totals.items())
        self._forget_unused()

    def hide(self, account: str) -> None:
        """Remove the totals of an account."""
        self._sets.pop(account, None)
        for delays in self.delays.values():
            delays.pop(account, None)
        self._forget_unused()

    def _forget_unused(self) -> None:
        """Forget label sets without totals, and the newest calls of series that are not shown."""
        used = set[int | None]().union(*self._sets.values())
        self._labels = {row: labels for row, labels in self._labels.items() if row in used}
        if self._newest:
            shown: set[tuple[str, ...]] = {(account,) for account in self._sets}  # of delays
            for account, sets in self._sets.items():
                shown.update((account, *self._values(row)) for row in sets)
            self._newest = {labels: it for labels, it in self._newest.items() if labels in shown}

    def learn(self, label_sets: Mapping[int, Labels]) -> None:
        self._labels.update(label_sets)

    def start(self, account: str, row: int, kind: Kind = Kind.CALL) -> None:
        """Start the totals of an account's label set at 0, if it has none."""
        if (sets := self._sets.get(account)) is None:
            return
        if row not in sets:
            sets[row] = LabelSetTotals()
        if kind is Kind.MESSAGE:
            self._message_delays.setdefault(account, _new_delays())

    def change_series(self, changes: SeriesChanges) -> None:
        """Start the totals of new label sets, and remove those of evicted ones.

        If another label set has the same series, it takes the totals over: counters must not
        decrease.
        """
        for account, row in changes.started:
            self.start(account, row)
        for account, row in changes.evicted:
            sets: dict[int | None, LabelSetTotals] = self._sets.get(account, {})
            if evicted := sets.pop(row, None):
                values = self._values(row)
                alike = (more for other, more in sets.items() if self._values(other) == values)
                if same := next(alike, None):
                    same.merge(evicted)
                else:
                    self._newest.pop((account, *values), None)
            if not any(row in sets for sets in self._sets.values()):
                self._labels.pop(row, None)

    def add(self, cells: Iterable[tuple[TotalKey, float]]) -> None:
        """Add increments of the ledger's totals.

        Those of unknown label sets are left out: another exporter has just started their totals,
        which are loaded again after its notice. Until then, the increments would be shown by the
        series without labels, which would decrease afterwards.
        """
        for (account, row, total, cell), amount in cells:
            if (sets := self._sets.get(account)) is None:
                continue
            if total in self.delays:
                _add(self.delays[total][account], cell, amount)
            elif row in self._labels:
                sets[row].add(total, cell, amount)

    def keep_newest(self, newest: Mapping[TotalKey, CountedCall]) -> None:
        """Replace the newest calls that series count, after `add`; ignored without exemplars."""
        if not self.exemplars:
            return
        for (account, row, total, cell), call in newest.items():
            if account in self._sets and (total in self.delays or row in self._labels):
                labels = () if total in self.delays else self._values(row)
                of_labels = self._newest.setdefault((account, *labels), {})
                of_labels[total, *_labels(cell)] = call

    def newest(self, total: TotalKind, labels: tuple[str, ...]) -> CountedCall | None:
        """Return the newest call that a series counts; `labels` are the values of its labels."""
        size = 1 if total in self.delays else 1 + len(self.names)
        return self._newest.get(labels[:size], {}).get((total, *labels[size:]))

    def shown(self) -> Iterator[tuple[tuple[str, ...], LabelSetTotals]]:
        """Yield the account with the values of the shown labels, and their totals."""
        for account, sets in self._sets.items():
            alike: defaultdict[tuple[str, ...], list[LabelSetTotals]] = defaultdict(list)
            for row, totals in sets.items():
                alike[self._values(row)].append(totals)
            for values, group in alike.items():
                yield (account, *values), group[0] if len(group) == 1 else _merged(group)

    def shown_messages(self) -> Iterator[tuple[tuple[str, ...], LabelSetTotals]]:
        """Yield the items of `shown` of accounts with messages."""
        return (item for item in self.shown() if item[0][0] in self._message_delays)

    def messages(self, account: str) -> MessageTotals | None:
        """Return the totals of an account's messages; None for an account without messages."""
        if account not in self._message_delays:
            return None
        sets = self._sets[account].values()
        return MessageTotals(
            int(sum(one.counts[TotalKind.MESSAGES][Result.SUCCESS,] for one in sets)),
            int(sum(one.counts[TotalKind.MESSAGES][Result.FAILURE,] for one in sets)),
            sum(one.counts[TotalKind.MESSAGE_PRICE][()] for one in sets),
        )

    def _values(self, row: int | None) -> tuple[str, ...]:
        labels = self._labels.get(row, {}) if row is not None else {}
        return tuple(labels.get(name, "") for name in self.names)


def _new_delays() -> Distribution:
    return Distribution(DELAY_BUCKETS)


def _merged(group: Iterable[LabelSetTotals]) -> LabelSetTotals:
    merged = LabelSetTotals()
    for totals in group:
        merged.merge(totals)
    return merged


def _labels(cell: str) -> tuple[str, ...]:
    """Return the values of the labels that a cell stands for."""
    return () if cell == SUM else tuple(cell.split("/"))


def _add(distribution: Distribution, cell: str, amount: float) -> None:
    if cell == SUM:
        distribution.sum += amount
        return
    try:
        index = distribution.bounds.index(float(cell))
    except ValueError:
        index = -1  # `+Inf`, or a bound of another version
    distribution.counts[index] += int(amount)
