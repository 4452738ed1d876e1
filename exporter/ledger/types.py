"""What goes into the ledger and what comes out of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from exporter.calls import Finished, PollAgain, Result, Status, WatchedCall
from exporter.ids import ReferenceId
from exporter.ledger.totals import TotalKey

BATCH_SIZE: Final = 1_000
"""Rows in one statement or transaction: long enough to be cheap, short enough not to be felt."""

DELETED: Final = "deleted"
"""The result of a call that somebody has deleted: it counts nothing, and is not watched again by
sources that do not know that."""

Labels = Mapping[str, str]


class NewCall(NamedTuple):
    """A call that a source wants watched."""

    account: str
    reference_id: ReferenceId
    labels: Labels


class StoredCall(NamedTuple):
    """A call that has not finished, as the ledger holds it.

    `labels` is the row of the set of labels that it is counted with.
    """

    account: str
    labels: int
    call: WatchedCall


class SeriesChanges(NamedTuple):
    """The sets of labels whose series change, by account and row.

    Attributes:
        begun: those that have series from now on.
        evicted: those that had, and made room.
    """

    begun: list[tuple[str, int]]
    evicted: list[tuple[str, int]]


NO_SERIES_CHANGES: Final = SeriesChanges([], [])


class Count(NamedTuple):
    """How many calls of a request were not known, and how many were."""

    added: int
    known: int


class InsertResult(NamedTuple):
    """What became of requests to watch calls.

    Attributes:
        added: the calls that were not known.
        label_sets: of those, by row.
        counts: of each request, or the account that has no room for it.
        refused: how many calls of each account there was no room for.
        rows: of all calls that are known now.
        series: what changed to make room for their labels.
    """

    added: list[StoredCall]
    label_sets: dict[int, Labels]
    counts: list[Count | str]
    refused: Counter[str]
    rows: set[int]
    series: SeriesChanges = NO_SERIES_CHANGES


class CallRecord(NamedTuple):
    """Everything that the ledger holds of a call; times are Unix times, the duration in seconds."""

    id: int
    account: str
    reference_id: str
    labels: Labels
    state: str
    first_watched: float
    result: str | None
    status: str | None
    duration: float | None
    key: str | None
    finished_at: float | None


class FinishedCall(NamedTuple):
    """A call that has finished, for people who look; times are Unix times."""

    account: str
    reference_id: str
    result: Result
    status: Status
    first_watched: float
    finished_at: float


class InsertSummary(NamedTuple):
    """As `InsertResult`, of any number of calls."""

    added: int
    rows: set[int]
    refused: Counter[str]


class Observation(NamedTuple):
    """What a poll found out about a call of an account, and when (Unix time)."""

    account: str
    call: WatchedCall
    verdict: Finished | PollAgain
    at: float


@dataclass(frozen=True, slots=True)
class Committed:
    """What a group of observations has changed, now durable.

    Attributes:
        added: what finished calls added to the totals.
        gone: observed calls that the ledger does not hold unfinished any more: they count nothing.
        by_account: how many calls of each account have finished.
        notify: the targets that are to be told of some.
        canaries: calls that canaries placed and that have finished: they count nowhere.
    """

    added: Mapping[TotalKey, float]
    gone: frozenset[int]
    by_account: Counter[str]
    notify: frozenset[str] = frozenset()
    canaries: frozenset[int] = frozenset()

    @property
    def finished(self) -> int:
        """How many calls have finished."""
        return self.by_account.total() + len(self.canaries)


class Snapshot(NamedTuple):
    """Everything that the metrics of finished calls are made of.

    Attributes:
        label_sets: the sets of labels that have totals of their own, by row.
        totals: every total.
        begun: the accounts and rows of the sets that have series.
    """

    label_sets: dict[int, Labels]
    totals: dict[TotalKey, float]
    begun: set[tuple[str, int]]
