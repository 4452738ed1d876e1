"""Calls, their results, and the verdict: what an answer means for a call.

Pure: no I/O, no clock, no randomness. Times are Unix times, so that ages survive a restart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import ClassVar, Final, NamedTuple, TypeAlias

from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.ids import Kind, ReferenceId, reference_key

PROVIDER_MEMORY: Final = 7 * 86_400.0
"""Seconds after which the provider forgets a call (its public documentation)."""

MAX_CALL_DURATION: Final = 86_400.0
"""The longest plausible call, in seconds. The documentation of the field is wrong, and one odd
value must not corrupt the sum of durations."""

# Looking up a member of an enumeration costs as much as a function call in Python 3.11.
_OK: Final = Outcome.OK
_NOT_FOUND: Final = Outcome.NOT_FOUND


class CallState(StrEnum):
    """The state of an open call: the label `state` of `esms_calls_watched`."""

    NEW = "new"
    AWAITING_APPROVAL = "awaiting_approval"
    QUEUED = "queued"
    AWAITING_REPORT = "awaiting_report"
    UNKNOWN = "unknown"
    NOT_FOUND = "not_found"


class Result(StrEnum):
    """Whether the carrier delivered a finished call."""

    SUCCESS = "success"
    FAILURE = "failure"
    UNKNOWN = "unknown"


class Status(StrEnum):
    """What the callee did, or why it is unknown."""

    ANSWERED = "answered"
    NO_ANSWER = "no_answer"
    BUSY = "busy"
    FAILED = "failed"
    REJECTED = "rejected"
    NONE = "none"
    OTHER = "other"
    NOT_FOUND = "not_found"
    EXPIRED = "expired"


ENDINGS: Final[tuple[tuple[Result, Status], ...]] = (
    *product(
        (Result.SUCCESS, Result.FAILURE),
        (Status.ANSWERED, Status.NO_ANSWER, Status.BUSY, Status.FAILED, Status.NONE, Status.OTHER),
    ),
    (Result.FAILURE, Status.REJECTED),
    (Result.UNKNOWN, Status.NOT_FOUND),
    (Result.UNKNOWN, Status.EXPIRED),
)
"""All combinations of result and status: the initial series of `esms_calls_total`."""

# CallStatus in upper case, without whitespace, `_` and `-`.
_STATUSES: Final = {
    "": Status.NONE,
    "ANSWERED": Status.ANSWERED,
    "ANSWER": Status.ANSWERED,
    "NOANSWERED": Status.NO_ANSWER,
    "NOANSWER": Status.NO_ANSWER,
    "BUSY": Status.BUSY,
    "FAILED": Status.FAILED,
    "FAIL": Status.FAILED,
}
_IGNORED: Final = str.maketrans("", "", " \t\r\n_-")

_FINISHED: Final = 5
_REJECTED: Final = 4
_ENDED: Final = frozenset({_FINISHED, _REJECTED})


class Key(StrEnum):
    """The first key that a callee pressed: the label `key` of `esms_call_keypresses_total`."""

    ZERO = "0"
    ONE = "1"
    TWO = "2"
    THREE = "3"
    FOUR = "4"
    FIVE = "5"
    SIX = "6"
    SEVEN = "7"
    EIGHT = "8"
    NINE = "9"
    STAR = "star"
    HASH = "hash"
    OTHER = "other"


class OddField(StrEnum):
    """A field with an invalid value: the label `field` of `esms_api_odd_values_total`."""

    SENT_RESULT = "sent_result"
    SEND_SUCCESS = "send_success"
    CALL_DURATION = "call_duration"


class CallbackOutcome(StrEnum):
    """The outcome of a callback: the label `outcome` of `esms_callbacks_total`."""

    HINT = "hint"  # the call is polled at once
    ACCEPTED = "accepted"  # the callback finished the call
    WATCHED = "watched"  # the call was unknown, and is added and polled
    IGNORED = "ignored"  # the call is unknown
    REPEATED = "repeated"  # the call has already finished
    MALFORMED = "malformed"  # no usable ReferenceId
    FORBIDDEN = "forbidden"  # not the account's token
    ERROR = "error"  # could not be stored; the provider sends it again


KEYS: Final = {**{str(key): Key(str(key)) for key in range(10)}, "*": Key.STAR, "#": Key.HASH}
"""The keys by what is printed on them."""


@dataclass(frozen=True, slots=True)
class GiveUpPolicy:
    """When to stop polling a call, in seconds; by default never.

    Attributes:
        not_found_grace: how long a call may be unknown to the provider.
        give_up_after: the age at which an open call expires.
    """

    not_found_grace: float = math.inf
    give_up_after: float = math.inf


@dataclass(slots=True, eq=False)
class WatchedCall:
    """An open call.

    The poller changes it in place. To save memory, as there may be a million calls, calls share
    equal times and ticks.

    Attributes:
        id: the row in the ledger.
        first_watched: when the call was added (Unix time).
        state: the state in the last committed answer.
        state_since: when that state began (Unix time; full seconds after the first answer).
        polls: number of answers in this process.
        last_polled: when the last answer arrived (Unix time, full seconds); 0 before the first.
        tick: the due tick in the timing wheel; -1 if the call is not in the wheel.
        label_set: the row of the label set in the ledger whose totals it is added to.
    """

    id: int
    reference_id: ReferenceId
    first_watched: float
    state: CallState = CallState.NEW
    state_since: float = 0.0
    polls: int = 0
    last_polled: float = 0.0
    tick: int = -1
    label_set: int = 0
    kind: ClassVar[Kind] = Kind.CALL


class WatchedMessage(WatchedCall):
    """An open message. A class, because a field for the kind would take memory."""

    __slots__ = ()
    kind: ClassVar[Kind] = Kind.MESSAGE


WATCHED: Final[dict[str, type[WatchedCall]]] = {
    Kind.CALL.value: WatchedCall,
    Kind.MESSAGE.value: WatchedMessage,
}
"""The class of an open call or message, by kind."""


class Receivers(NamedTuple):
    """The receivers of a finished message: those that got it, and the others."""

    delivered: int
    failed: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The call or message has ended.

    Attributes:
        result: of a message, `success` if all receivers got it.
        duration: seconds, for an answered call with a plausible duration.
        key: the first key that the callee pressed, if any.
        odd: the fields with invalid values.
        receivers: of a message with a known result.
        price: in VND; of a call, from the callback that finished it.
    """

    result: Result
    status: Status
    duration: float | None = None
    key: Key | None = None
    odd: tuple[OddField, ...] = ()
    receivers: Receivers | None = None
    price: float | None = None


@dataclass(frozen=True, slots=True)
class PollAgain:
    """The call is still open: poll it again after its interval."""

    state: CallState


@dataclass(frozen=True, slots=True)
class BackOff:
    """The poll failed: poll the call again, with exponential back-off."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Refused:
    """The provider refused the account or only this call; polls of other calls show which.

    Attributes:
        outcome: `auth` or `throttled`.
        retry_after: seconds to wait, from the `Retry-After` header.
    """

    outcome: Outcome
    retry_after: float | None = None


Verdict: TypeAlias = Finished | PollAgain | BackOff | Refused

EXPIRED: Final = Finished(Result.UNKNOWN, Status.EXPIRED)

# Created once, because most polls return one of them.
_STILL_UNKNOWN: Final = PollAgain(CallState.NOT_FOUND)
_UNCLEAR: Final = PollAgain(CallState.UNKNOWN)
_POLL_AGAIN: Final = {
    1: PollAgain(CallState.AWAITING_APPROVAL),
    2: PollAgain(CallState.QUEUED),
    7: PollAgain(CallState.AWAITING_REPORT),
}


def verdict(call: WatchedCall, answer: Answer, now: float, policy: GiveUpPolicy) -> Verdict:
    """Return what an answer at time `now` means for a call. Never raises."""
    outcome = answer.outcome
    expired = now - call.first_watched >= policy.give_up_after
    if outcome is _OK:
        return _reported(call, answer, expired=expired)
    if outcome is _NOT_FOUND:
        # The grace period starts with the first such answer, because the call may have been known
        # before, or the credentials may have been refused since it was added.
        since = call.state_since if call.state is _STILL_UNKNOWN.state else now
        if now - since >= policy.not_found_grace:
            return Finished(Result.UNKNOWN, Status.NOT_FOUND)
        return EXPIRED if expired else _STILL_UNKNOWN
    if expired:
        return EXPIRED
    if outcome is Outcome.AUTH or outcome is Outcome.THROTTLED:
        return Refused(outcome, answer.retry_after)
    return BackOff(outcome)


def _reported(call: WatchedCall, answer: Answer, *, expired: bool) -> Verdict:
    named, asked = answer.reference_id, call.reference_id
    # Usually the ids are equal as written.
    if named is not None and named != asked and reference_key(named) != reference_key(asked):
        return EXPIRED if expired else BackOff(Outcome.BAD_RESPONSE)
    if answer.send_status in _ENDED and call.kind is Kind.MESSAGE:
        return _message_ended(answer)
    if answer.send_status == _FINISHED:
        return _finished(answer)
    if answer.send_status == _REJECTED:
        return Finished(Result.FAILURE, Status.REJECTED, key=_key(answer.ivr))
    return EXPIRED if expired else _POLL_AGAIN.get(answer.send_status or 0, _UNCLEAR)


def _finished(answer: Answer) -> Finished:
    text = answer.call_status
    # Usually the text is as documented.
    status = _STATUSES.get(text) or _STATUSES.get(text.translate(_IGNORED).upper(), Status.OTHER)
    odd: tuple[OddField, ...] = ()
    success = answer.sent_result
    if success is None:
        odd, success = (OddField.SENT_RESULT,), status is Status.ANSWERED
    duration = answer.duration
    # Comparisons with NaN are false, so NaN is not plausible.
    plausible = duration is not None and 0 <= duration <= MAX_CALL_DURATION
    if answer.odd_duration or (duration is not None and not plausible):
        odd += (OddField.CALL_DURATION,)
    return Finished(
        Result.SUCCESS if success else Result.FAILURE,
        status,
        duration if plausible and status is Status.ANSWERED else None,
        _key(answer.ivr),
        odd,
    )


def _message_ended(answer: Answer) -> Finished:
    """Return the result of a message, with the numbers of its receivers."""
    delivered, failed = answer.delivered or 0, answer.failed or 0
    odd: tuple[OddField, ...] = ()
    if answer.send_status == _REJECTED:
        status, delivered, failed = Status.REJECTED, 0, max(failed, answer.receivers or 1)
    else:
        status = Status.NONE
        if not delivered and not failed:
            odd, failed = (OddField.SEND_SUCCESS,), max(1, answer.receivers or 0)
    result = Result.FAILURE if failed else Result.SUCCESS
    receivers = Receivers(delivered, failed)
    return Finished(result, status, odd=odd, receivers=receivers, price=answer.price)


def _key(ivr: str) -> Key | None:
    """Return the first key in `ivr`, ignoring whitespace."""
    pressed = ivr.strip()
    return KEYS.get(pressed[0], Key.OTHER) if pressed else None
