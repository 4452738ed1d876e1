"""Statistics of an account as plain numbers, for metrics and the status page."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from exporter.calls import CallState, OddField
from exporter.esms.codes import AUTH_CODES, CODES, OTHER_CODE, Outcome
from exporter.ids import Kind

REQUEST_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LAG_BUCKETS: Final = (0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0)


# Looking up a member of an enumeration costs as much as a function call in Python 3.11.
_CALL: Final = Kind.CALL


class Distribution:
    """Histogram: counts per bucket, not cumulative; the last bucket has no upper bound."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Operation(StrEnum):
    """The operation of a request to the provider: the label `operation`."""

    GET_SEND_STATUS = "get_send_status"  # a poll of a call
    GET_MESSAGE_STATUS = "get_message_status"  # a poll of a message
    MAKE_CALL = "make_call"  # placing a canary call
    GET_BALANCE = "get_balance"


@dataclass(slots=True, eq=False)
class RequestStats:
    """Requests of an operation.

    Attributes:
        outcomes: number of requests by outcome.
        codes: number of answers by result code.
        refusals: number of answers by which the credentials were refused, by result code.
        durations: in seconds.
    """

    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    codes: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*CODES, OTHER_CODE), 0))
    refusals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(AUTH_CODES, 0))
    durations: Distribution = field(default_factory=lambda: Distribution(REQUEST_BUCKETS))

    def count(self, outcome: Outcome, code: str | None, seconds: float) -> None:
        """Count a request with its outcome, result code and duration."""
        self.outcomes[outcome] += 1
        self.durations.observe(seconds)
        if code is not None:
            self.codes[code if code in self.codes else OTHER_CODE] += 1
            if outcome is Outcome.AUTH:
                self.refusals[code] = self.refusals.get(code, 0) + 1

    def show(self, codes: Mapping[str, str]) -> None:
        """Count these codes by themselves; `codes` has the class of each."""
        for code, outcome in codes.items():
            self.codes.setdefault(code, 0)
            if outcome == Outcome.AUTH:
                self.refusals.setdefault(code, 0)


class Balance(NamedTuple):
    """A balance in VND, and when the provider reported it (Unix time)."""

    vnd: float
    known_at: float


@dataclass(slots=True, eq=False)
class AccountStats:
    """Statistics of an account since the start of the process.

    Attributes:
        polls: `GetSendStatus` requests for calls.
        requests: all requests, by operation; unused operations are missing.
        odd_values: invalid fields of finished calls.
        open: number of open calls and messages, by kind and the state in their last answer.
        oldest_open: when the oldest open call or message was added (Unix time); 0 if there is none.
        lags: seconds from the due time of a poll to its request.
        authorized: whether the provider accepts the credentials; None if unknown.
        pause_ends: when the pause ends, by the monotonic clock; 0 if the account is not paused.
        last_success: time of the last successful poll (Unix time); 0 before the first.
        balance: the last known balance, if any.
        balance_warning: the balance is low below this amount in VND, if configured.
    """

    polls: RequestStats = field(default_factory=RequestStats)
    requests: dict[Operation, RequestStats] = field(init=False)
    odd_values: dict[OddField, int] = field(default_factory=lambda: dict.fromkeys(OddField, 0))
    open: dict[Kind, dict[CallState, int]] = field(
        default_factory=lambda: {kind: dict.fromkeys(CallState, 0) for kind in Kind}
    )
    oldest_open: float = 0.0
    lags: Distribution = field(default_factory=lambda: Distribution(LAG_BUCKETS))
    authorized: bool | None = None
    pause_ends: float = 0.0
    last_success: float = 0.0
    balance: Balance | None = None
    balance_warning: float | None = None
    _codes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.requests = {Operation.GET_SEND_STATUS: self.polls}

    def of(self, operation: Operation) -> RequestStats:
        """Return the statistics of an operation, and create them if needed."""
        if (made := self.requests.get(operation)) is None:
            made = self.requests[operation] = RequestStats()
            made.show(self._codes)
        return made

    def polls_of(self, kind: Kind) -> RequestStats:
        """Return the statistics of the polls of calls or of messages."""
        return self.polls if kind is _CALL else self.of(Operation.GET_MESSAGE_STATUS)

    @property
    def paused_until(self) -> float:
        """When the pause ends (Unix time), by the machine's clock of now; 0 if not paused."""
        return self.pause_ends and round(time.time() + self.pause_ends - time.monotonic(), 3)

    @property
    def polls_messages(self) -> bool:
        """Whether messages were polled or are open."""
        return Operation.GET_MESSAGE_STATUS in self.requests

    def show_codes(self, codes: Mapping[str, str]) -> None:
        """Count configured result codes by themselves; `codes` has the class of each."""
        self._codes = codes
        for made in self.requests.values():
            made.show(codes)
