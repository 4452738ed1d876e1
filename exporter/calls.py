"""Watched calls, and what an answer means for them.

Pure: no I/O, no clock, no randomness. Time comes in as an argument, in seconds; wall-clock times
are Unix times, because ages have to survive a restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.ids import ID_PATTERN, ReferenceId, ReferenceKey, reference_id, reference_key

__all__ = ["ID_PATTERN", "ReferenceId", "ReferenceKey", "reference_id", "reference_key"]

PROVIDER_MEMORY: Final = 7 * 86_400.0
"""Seconds after which the provider does not know a call any more (its public documentation)."""

# The longest call that can be meant: one day. The provider's field is documented wrongly, so odd
# values are expected; the sum of durations must not be spoilt by one of them.
MAX_CALL_DURATION: Final = 86_400.0

# Looked up once: Python 3.11 takes as long for a member of an enumeration as for a call.
_OK: Final = Outcome.OK
_NOT_FOUND: Final = Outcome.NOT_FOUND


class CallState(StrEnum):
    """Where a call that has not finished stands: the label `state` of `esms_calls_watched`."""

    NEW = "new"
    AWAITING_APPROVAL = "awaiting_approval"
    QUEUED = "queued"
    AWAITING_REPORT = "awaiting_report"
    UNKNOWN = "unknown"
    NOT_FOUND = "not_found"


class Result(StrEnum):
    """How a call ended: did the carrier deliver it."""

    SUCCESS = "success"
    FAILURE = "failure"
    UNKNOWN = "unknown"


class Status(StrEnum):
    """What the callee did, or why nothing is known of it."""

    ANSWERED = "answered"
    NO_ANSWER = "no_answer"
    BUSY = "busy"
    FAILED = "failed"
    REJECTED = "rejected"
    NONE = "none"
    OTHER = "other"
    NOT_FOUND = "not_found"
    EXPIRED = "expired"


_TOLD: Final = (
    Status.ANSWERED,
    Status.NO_ANSWER,
    Status.BUSY,
    Status.FAILED,
    Status.NONE,
    Status.OTHER,
)

ENDINGS: Final[tuple[tuple[Result, Status], ...]] = (
    *((Result.SUCCESS, status) for status in _TOLD),
    *((Result.FAILURE, status) for status in _TOLD),
    (Result.FAILURE, Status.REJECTED),
    (Result.UNKNOWN, Status.NOT_FOUND),
    (Result.UNKNOWN, Status.EXPIRED),
)
"""Every way in which a call can end: the combinations that `esms_calls_total` starts with."""

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

_STATES: Final = {
    1: CallState.AWAITING_APPROVAL,
    2: CallState.QUEUED,
    7: CallState.AWAITING_REPORT,
}
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


_KEYS: Final = {
    **{key.value: key for key in Key if key.value.isdigit()},
    "*": Key.STAR,
    "#": Key.HASH,
}


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an account's calls are asked for; all in seconds.

    Attributes:
        not_found_grace: how long a call may stay unknown to the provider.
        give_up_after: the age at which a call that does not finish is given up.
    """

    not_found_grace: float
    give_up_after: float


@dataclass(slots=True, eq=False)
class WatchedCall:
    """A call whose result is not known yet.

    The one object of the project that changes. A million of them are held, so each holds as little
    as it can: times and ticks are numbers that calls share, wherever they can.

    Attributes:
        id: its row in the ledger.
        reference_id: the id that the provider is asked for.
        first_watched: when it was first watched (Unix time).
        state: as of the last answer that was committed.
        state_since: when that state began (Unix time, to the second once it was answered).
        polls: how often it was asked for since it is watched here.
        last_polled: when it was last answered (Unix time, to the second); 0 before the first time.
        tick: when it is due, in ticks of the schedule; -1 while it is not scheduled.
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
    """The call goes on: ask again at its pace."""

    state: CallState


@dataclass(frozen=True, slots=True)
class BackOff:
    """Nothing was learnt of the call: ask again, later and later."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class PauseAccount:
    """The provider refuses the account, or only this call: others show which.

    Attributes:
        outcome: `auth` or `throttled`.
        retry_after: the seconds that the provider asked for, if it did.
    """

    outcome: Outcome
    retry_after: float | None = None


Verdict: TypeAlias = Finished | PollAgain | BackOff | PauseAccount

EXPIRED: Final = Finished(Result.UNKNOWN, Status.EXPIRED)

# Made once, because nearly every poll ends in one of them.
_GO_ON: Final = {state: PollAgain(state) for state in CallState}
_STILL_UNKNOWN: Final = _GO_ON[CallState.NOT_FOUND]
_UNCLEAR: Final = _GO_ON[CallState.UNKNOWN]
_TO_GO_ON: Final = {number: _GO_ON[state] for number, state in _STATES.items()}


def verdict(call: WatchedCall, answer: Answer, now: float, patience: Patience) -> Verdict:
    """Decide what an answer means for a call. Total: every answer has exactly one verdict.

    Args:
        call: the call that was asked for.
        answer: what came back, or the failure that came instead of it.
        now: Unix time of the answer.
        patience: how long the call may stay unknown or unfinished.
    """
    outcome = answer.outcome
    if outcome is _OK:
        return _told(call, answer, now, patience)
    age = now - call.first_watched
    if outcome is _NOT_FOUND:
        # From the first such answer on, not from the first watch: a call that was known yesterday,
        # or was watched while the credentials were refused, gets the whole grace.
        since = call.state_since if call.state is _STILL_UNKNOWN.state else now
        if now - since >= patience.not_found_grace:
            return Finished(Result.UNKNOWN, Status.NOT_FOUND)
        return EXPIRED if age >= patience.give_up_after else _STILL_UNKNOWN
    if age >= patience.give_up_after:
        return EXPIRED
    if outcome is Outcome.AUTH or outcome is Outcome.THROTTLED:
        return PauseAccount(outcome, answer.retry_after)
    return BackOff(outcome)


def _told(call: WatchedCall, answer: Answer, now: float, patience: Patience) -> Verdict:
    named, asked = answer.reference_id, call.reference_id
    # As written, nearly always; if not, as ids are compared.
    if named is not None and named != asked and reference_key(named) != reference_key(asked):
        expired = now - call.first_watched >= patience.give_up_after
        return EXPIRED if expired else BackOff(Outcome.BAD_RESPONSE)
    if answer.send_status == _FINISHED:
        return _finished(answer)
    if answer.send_status == _REJECTED:
        return Finished(Result.FAILURE, Status.REJECTED, key=_key(answer.ivr))
    if now - call.first_watched >= patience.give_up_after:
        return EXPIRED
    return _TO_GO_ON.get(answer.send_status or 0, _UNCLEAR)


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
    good = duration is not None and 0 <= duration <= MAX_CALL_DURATION
    if answer.odd_duration or (duration is not None and not good):
        odd += (OddField.CALL_DURATION,)
    return Finished(
        Result.SUCCESS if success else Result.FAILURE,
        status,
        duration if good and status is Status.ANSWERED else None,
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


def next_poll(age: float, interval: float, max_interval: float) -> float:
    """Return how long to wait, in seconds, before a call is asked for again (without jitter).

    Until the age of ten intervals a call is asked for every `interval`. From then on its interval
    grows by half each time: a geometric series, whose next member follows from the age alone, so
    that a restart or a changed configuration goes on where it should.

    Args:
        age: seconds since the call was first watched.
        interval: `polling.interval`, in seconds.
        max_interval: `polling.max_interval`, in seconds.
    """
    steady = 10 * interval
    wait = interval if age < steady else 1.5 * interval + (age - steady) / 2
    return min(max_interval, wait)
