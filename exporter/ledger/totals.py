"""The totals of finished calls, and the increments that a call adds to them. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from enum import StrEnum
from typing import Final, NamedTuple

from exporter.calls import Finished, Result
from exporter.ids import Kind, ReferenceId

DURATION_BUCKETS: Final = (
    1.0, 3.0, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0,
)  # fmt: skip
"""Upper bounds of `esms_call_duration_seconds`, in seconds."""

DELAY_BUCKETS: Final = (
    1.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0, 86400.0,
    259200.0,
)  # fmt: skip
"""Upper bounds of `esms_call_result_delay_seconds`, in seconds, up to the default give-up age."""


class TotalKind(StrEnum):
    """The kinds of totals. The cells of a histogram are the upper bounds of buckets, and `sum`."""

    CALLS = "calls"  # cell: result/status
    DURATION = "duration"
    KEYPRESSES = "keypresses"  # cell: the key
    DELAY = "delay"
    PRICE = "price"  # cell: `sum`, in VND
    MESSAGES = "messages"  # receivers of messages; cell: the result
    MESSAGE_DELAY = "message_delay"
    MESSAGE_PRICE = "message_price"


SUM: Final = "sum"

# Constants: in Python 3.11, accessing an enum member is as slow as a function call.
_CALLS: Final = TotalKind.CALLS
_DURATION: Final = TotalKind.DURATION
_DELAY: Final = TotalKind.DELAY
_CALL: Final = Kind.CALL

# The bounds of buckets as the label `le` shows them.
_DURATION_CELLS: Final = (*map(repr, DURATION_BUCKETS), "+Inf")
_DELAY_CELLS: Final = (*map(repr, DELAY_BUCKETS), "+Inf")


class TotalKey(NamedTuple):
    """The key of a number that only grows; `labels` is the row of a label set."""

    account: str
    labels: int
    total: TotalKind
    cell: str


class CountedCall(NamedTuple):
    """A finished call or message that a total counts, for an exemplar.

    Attributes:
        value: the seconds that a bucket counts, or the increment of a counter.
        finished_at: Unix time of the machine's clock.
    """

    reference_id: ReferenceId
    value: float
    finished_at: float


def additions(
    account: str,
    labels: int,
    finished: Finished,
    delay: float,
    price: float | None = None,
    kind: Kind = Kind.CALL,
) -> Iterator[tuple[TotalKey, float, float | None]]:
    """Yield the totals that a finished call or message changes, and their increments.

    Each comes with the value that an exemplar shows: the seconds that a bucket counts, or the
    increment of a counter; None for totals without exemplars. `labels` is the row of the label set,
    `delay` the seconds from adding the call to its result; negative values count as 0. The price is
    in VND.
    """
    value = max(0.0, delay)
    cell = _DELAY_CELLS[bisect_left(DELAY_BUCKETS, value)]
    total = _DELAY if kind is _CALL else TotalKind.MESSAGE_DELAY
    yield TotalKey(account, labels, total, cell), 1.0, value
    yield TotalKey(account, labels, total, SUM), _exact(value), None
    if price is not None:
        yield *price_added(account, labels, price, kind), None
    if kind is not _CALL:
        receivers = [(Result.UNKNOWN, 1)]
        if finished.receivers:
            receivers = list(zip((Result.SUCCESS, Result.FAILURE), finished.receivers, strict=True))
        for result, number in receivers:
            if number:
                count = float(number)
                yield TotalKey(account, labels, TotalKind.MESSAGES, result.value), count, count
        return
    yield TotalKey(account, labels, _CALLS, f"{finished.result}/{finished.status}"), 1.0, 1.0
    if finished.duration is not None:
        value = finished.duration
        cell = _DURATION_CELLS[bisect_left(DURATION_BUCKETS, value)]
        yield TotalKey(account, labels, _DURATION, cell), 1.0, value
        yield TotalKey(account, labels, _DURATION, SUM), _exact(value), None
    if finished.key is not None:
        yield TotalKey(account, labels, TotalKind.KEYPRESSES, finished.key.value), 1.0, None


def price_added(
    account: str, labels: int, price: float, kind: Kind = Kind.CALL
) -> tuple[TotalKey, float]:
    """Return the increment of the price of a finished call or message, in VND."""
    total = TotalKind.PRICE if kind is _CALL else TotalKind.MESSAGE_PRICE
    return TotalKey(account, labels, total, SUM), _exact(price)


def _exact(value: float) -> float:
    # Sums of multiples of 1/1024 are exact up to 10^12. Inexact sums depend on the order of
    # additions, which differs after a restart, so a counter could decrease.
    return round(value * 1024) / 1024
