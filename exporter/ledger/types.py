"""The values that the ledger's functions take and return."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from exporter.calls import Finished, PollAgain, WatchedCall
from exporter.ids import Kind, ReferenceId
from exporter.ledger.totals import CountedCall, TotalKey

BATCH_SIZE: Final = 1_000
"""Rows in one statement or transaction: enough to be efficient, few enough not to block others."""

DELETED: Final = "deleted"
"""The result of a deleted call. It is not counted, and queries that still return it do not add it
again."""

Labels = Mapping[str, str]


class NewCall(NamedTuple):
    """A call that a source adds."""

    account: str
    reference_id: ReferenceId
    labels: Labels
    kind: Kind | None = None  # None for the default of the account


class StoredCall(NamedTuple):
    """An open call in the ledger."""

    account: str
    call: WatchedCall


class SeriesChanges(NamedTuple):
    """The label sets whose series start or end, as pairs of account and row."""

    started: list[tuple[str, int]]
    evicted: list[tuple[str, int]]  # to make room


class Count(NamedTuple):
    """How many calls of a request were new, and how many were in the ledger already."""

    added: int
    known: int


class InsertResult(NamedTuple):
    """The result of requests to add calls."""

    added: list[StoredCall]
    label_sets: dict[int, Labels]  # of the added calls, by row
    counts: list[Count | str]  # of each request, or the name of the account that was full
    refused: Counter[str]  # calls that exceeded the limit of their account, by account
    rows: set[int]  # of all accepted calls, new or not
    series: SeriesChanges = SeriesChanges([], [])


class CallRecord(NamedTuple):
    """A call as shown by listings and look-ups; times are Unix times, the duration in seconds."""

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
    kind: str
    delivered: int | None  # receivers of a finished message that got it
    failed: int | None  # the others


class FinishedCall(NamedTuple):
    """A finished call: the event that notifications carry, and a recent result.

    Times are Unix times of the machine's clock. The column `notifications.call` stores it as JSON.
    """

    account: str
    reference_id: str
    result: str
    status: str
    duration: float | None
    key: str | None
    labels: Labels  # only of notifications
    first_watched: float
    finished_at: float
    kind: str = Kind.CALL.value
    delivered: int | None = None  # receivers of a message that got it
    failed: int | None = None  # the others


class ExportedCall(NamedTuple):
    """A finished call with all its columns.

    Times are Unix times, the duration is in seconds, the price in VND.
    """

    id: int
    account: str
    reference_id: str
    kind: str
    labels: Labels
    counted_labels: Labels  # of the label set whose totals it is added to
    result: str
    status: str
    duration: float | None
    key: str | None
    price: float | None
    delivered: int | None  # receivers of a message that got it
    failed: int | None  # the others
    first_watched: float
    finished_at: float


class Observation(NamedTuple):
    """The verdict on a call of an account, and its Unix time."""

    account: str
    call: WatchedCall
    verdict: Finished | PollAgain
    at: float
    from_callback: bool = False


class Committed(NamedTuple):
    """The durable changes of a group of observations."""

    added: Mapping[TotalKey, float]  # increments of the totals
    ignored: frozenset[int]  # observed calls that were not open any more; they are not counted
    finished: list[FinishedCall]  # without calls of canaries, which are not counted
    notify: frozenset[str] = frozenset()  # targets with new notifications
    newest: Mapping[TotalKey, CountedCall] = MappingProxyType({})  # of the totals with exemplars


class Snapshot(NamedTuple):
    """The data behind the metrics of finished calls."""

    label_sets: dict[int, Labels]  # those with totals, by row
    totals: dict[TotalKey, float]
    started: set[tuple[str, int]]  # the label sets with series, as pairs of account and row
