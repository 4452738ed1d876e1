"""Calls, their results, and the verdict: what an answer means for a call.

Pure: no I/O, no clock, no randomness. Times are Unix times, because ages have to survive a restart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import Final, TypeAlias

from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.ids import ReferenceId, reference_key

PROVIDER_MEMORY: Final = 7 * 86_400.0
"""Seconds after which the provider does not know a call any more (its public documentation)."""

MAX_CALL_DURATION: Final = 86_400.0
"""The longest plausible call, in seconds. The provider's field is documented wrongly, and one odd
value must not spoil the sum of durations."""

# Looked up once: Python 3.11 takes as long for a member of an enumeration as for a call.
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
    """What the callee did, or why that is not known."""

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
"""Every way a call can end: the combinations that `esms_calls_total` starts with."""

# CallStatus with case, blanks, `_` and `-` taken away.
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
    """A field whose value cannot be used: the label `field` of `esms_api_odd_values_total`."""

    SENT_RESULT = "sent_result"
    CALL_DURATION = "call_duration"


class CallbackOutcome(StrEnum):
    """The outcome of a callback: the label `outcome` of `esms_callbacks_total`."""

    HINT = "hint"  # the call is polled now
    ACCEPTED = "accepted"  # the callback finished the call
    WATCHED = "watched"  # the call was not watched; now it is polled
    IGNORED = "ignored"  # the call is not watched
    REPEATED = "repeated"  # the call had finished before
    MALFORMED = "malformed"  # no usable ReferenceId
    FORBIDDEN = "forbidden"  # not the account's token
    ERROR = "error"  # could not be stored; the provider sends it again


_KEYS: Final = {**{str(key): Key(str(key)) for key in range(10)}, "*": Key.STAR, "#": Key.HASH}


@dataclass(frozen=True, slots=True)
class GiveUpPolicy:
    """How long calls are polled, in seconds; by default for ever.

    Attributes:
        not_found_grace: how long the provider may not know a call.
        give_up_after: the age at which a call that does not finish is given up.
    """

    not_found_grace: float = math.inf
    give_up_after: float = math.inf


@dataclass(slots=True, eq=False)
class WatchedCall:
    """An open call.

    The poller changes it in place. A million of them are held, so each holds as little as it can:
    times and ticks are objects that calls share, wherever they can.

    Attributes:
        id: its row in the ledger.
        reference_id: the id to poll.
        first_watched: when it was added (Unix time).
        state: as of the last answer that was committed.
        state_since: when that state began (Unix time, to the second once it was answered).
        polls: how many answers came since it was added here.
        last_polled: when the last of them came (Unix time, to the second); 0 before the first.
        tick: when it is due, in ticks of the timing wheel; -1 while it is not in the wheel.
        label_set: the row of its labels in the ledger.
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


@dataclass(frozen=True, slots=True)
class Finished:
    """The call has ended.

    Attributes:
        duration: of an answered call, in seconds; None where there is none or it is absurd.
        key: the first key that the callee pressed, if any.
        odd: the fields of the answer that could not be used.
    """

    result: Result
    status: Status
    duration: float | None = None
    key: Key | None = None
    odd: tuple[OddField, ...] = ()


@dataclass(frozen=True, slots=True)
class PollAgain:
    """The call is still open: poll it again at its interval."""

    state: CallState


@dataclass(frozen=True, slots=True)
class BackOff:
    """Nothing was learnt of the call: poll it again, later and later."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Refused:
    """The provider refuses the account, or only this call: answers to others show which.

    Attributes:
        outcome: `auth` or `throttled`.
        retry_after: seconds that the provider asked for, if it did.
    """

    outcome: Outcome
    retry_after: float | None = None


Verdict: TypeAlias = Finished | PollAgain | BackOff | Refused

EXPIRED: Final = Finished(Result.UNKNOWN, Status.EXPIRED)

# Made once, because nearly every poll ends in one of them.
_STILL_UNKNOWN: Final = PollAgain(CallState.NOT_FOUND)
_UNCLEAR: Final = PollAgain(CallState.UNKNOWN)
_POLL_AGAIN: Final = {
    1: PollAgain(CallState.AWAITING_APPROVAL),
    2: PollAgain(CallState.QUEUED),
    7: PollAgain(CallState.AWAITING_REPORT),
}


def verdict(call: WatchedCall, answer: Answer, now: float, policy: GiveUpPolicy) -> Verdict:
    """Decide what an answer that came at `now` means for a call. Total: each has one verdict."""
    outcome = answer.outcome
    expired = now - call.first_watched >= policy.give_up_after
    if outcome is _OK:
        return _reported(call, answer, expired=expired)
    if outcome is _NOT_FOUND:
        # The grace begins with the first such answer: a call that was known yesterday, or that was
        # added while the credentials were refused, gets all of it.
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
    # Nearly always as written; if not, compare as ids are compared.
    if named is not None and named != asked and reference_key(named) != reference_key(asked):
        return EXPIRED if expired else BackOff(Outcome.BAD_RESPONSE)
    if answer.send_status == _FINISHED:
        return _finished(answer)
    if answer.send_status == _REJECTED:
        return Finished(Result.FAILURE, Status.REJECTED, key=_key(answer.ivr))
    return EXPIRED if expired else _POLL_AGAIN.get(answer.send_status or 0, _UNCLEAR)


def _finished(answer: Answer) -> Finished:
    text = answer.call_status
    # As documented, nearly always.
    status = _STATUSES.get(text) or _STATUSES.get(text.translate(_IGNORED).upper(), Status.OTHER)
    odd: tuple[OddField, ...] = ()
    success = answer.sent_result
    if success is None:
        odd, success = (OddField.SENT_RESULT,), status is Status.ANSWERED
    duration = answer.duration
    # Comparisons are false for NaN, so that it counts as absurd too.
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


def key_named(text: str | None) -> Key | None:
    """Return the key that a text such as `1` or `#` names."""
    return _KEYS.get(text) if text else None


def _key(ivr: str) -> Key | None:
    """Return the first key of `ivr`; blanks are no keys."""
    pressed = ivr.strip()
    return _KEYS.get(pressed[0], Key.OTHER) if pressed else None
