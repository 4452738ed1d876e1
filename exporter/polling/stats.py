"""What is counted of one account, in plain numbers: metrics and the status page read them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from exporter.calls import CallState, OddField
from exporter.esms.codes import CODES, OTHER_CODE, Outcome

REQUEST_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LAG_BUCKETS: Final = (0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0)


class Distribution:
    """Counts of values by upper bound, not cumulated; the last counts those above all bounds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Operation(StrEnum):
    """What a request to the provider is for: the label `operation`."""

    GET_SEND_STATUS = "get_send_status"  # a poll
    MAKE_CALL = "make_call"  # placing a canary call
    GET_BALANCE = "get_balance"


@dataclass(slots=True, eq=False)
class RequestStats:
    """Requests of one operation: by outcome, by result code, and their durations in seconds."""

    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    codes: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*CODES, OTHER_CODE), 0))
    durations: Distribution = field(default_factory=lambda: Distribution(REQUEST_BUCKETS))

    def count(self, outcome: Outcome, code: str | None, seconds: float) -> None:
        """Count a request, the result code of its answer if it had one, and its duration."""
        self.outcomes[outcome] += 1
        self.durations.observe(seconds)
        if code is not None:
            self.codes[code] += 1


class Balance(NamedTuple):
    """A balance in VND, and when the provider reported it (Unix time)."""

    vnd: float
    known_at: float


@dataclass(slots=True, eq=False)
class AccountStats:
    """What is counted of one account and its polls; all begins at 0.

    Attributes:
        polls: requests for the status of calls.
        requests: all requests, by operation; without operations that were never used.
        odd_values: fields of finished calls that could not be used.
        open_calls: calls that have not finished, by their state at the last answer.
        oldest_open: when the oldest of them was added (Unix time); 0 for none.
        lags: seconds from the moment a call was due to its request.
        authorized: whether the credentials are accepted; None while that is not known.
        paused_until: when the account may be polled again (Unix time); 0 while it is not paused.
        last_success: when the provider last gave a good answer (Unix time); 0 before the first.
        balance: the last known one, if any.
        balance_warning: the balance in VND below which it is low, if one is configured.
    """

    polls: RequestStats = field(default_factory=RequestStats)
    requests: dict[Operation, RequestStats] = field(init=False)
    odd_values: dict[OddField, int] = field(default_factory=lambda: dict.fromkeys(OddField, 0))
    open_calls: dict[CallState, int] = field(default_factory=lambda: dict.fromkeys(CallState, 0))
    oldest_open: float = 0.0
    lags: Distribution = field(default_factory=lambda: Distribution(LAG_BUCKETS))
    authorized: bool | None = None
    paused_until: float = 0.0
    last_success: float = 0.0
    balance: Balance | None = None
    balance_warning: float | None = None

    def __post_init__(self) -> None:
        self.requests = {Operation.GET_SEND_STATUS: self.polls}

    def of(self, operation: Operation) -> RequestStats:
        """Return the requests of an operation; the first time, all of them are 0."""
        return self.requests.setdefault(operation, RequestStats())
