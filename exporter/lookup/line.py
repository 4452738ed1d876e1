"""What is told of one call that was looked up. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Final

from exporter.calls import (
    Finished,
    GiveUpPolicy,
    Key,
    OddField,
    PollAgain,
    Result,
    Status,
    WatchedCall,
    verdict,
)
from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.ids import ReferenceId, ReferenceKey, reference_key
from exporter.polling.circuit_breaker import GOOD

FINISHED: Final = "finished"

# Nobody waits here for what will become of a call: none is too old.
_FOR_EVER: Final = GiveUpPolicy(math.inf, math.inf)

# What is said where the provider's own words are missing.
_WORDS: Final = {
    Outcome.BAD_RESPONSE: "the answer is not one about this call",
    Outcome.HTTP_ERROR: "the provider answered with an HTTP error",
    Outcome.THROTTLED: "the provider asks for fewer requests",
}

_GUESSED: Final = "without a SentResult: the result is taken from the status"

CallName = tuple[str, ReferenceKey]
"""An account's name and an id as ids are compared: what a call is, however it is written."""


@dataclass(frozen=True, slots=True)
class Line:
    """What is told of one call, in the words of the metrics.

    Attributes:
        reference_id: as it was asked for.
        account: whose call it is.
        state: where it stands, or `finished`; None where the provider has not said.
        result: of a finished call; so are `status`, `duration` (seconds) and `key`.
        status: see `Status`.
        duration: of an answered call.
        key: the first key that the callee pressed.
        outcome: what the request came to, or the one for whose sake there was none.
        code: the provider's code; `other` for one that is not documented.
        message: the provider's words for a failure, or the exporter's.
        asked_at: when the answer came (UTC); None where the call was not asked for.
    """

    reference_id: ReferenceId
    account: str
    state: str | None
    result: Result | None
    status: Status | None
    duration: float | None
    key: Key | None
    outcome: Outcome
    code: str | None
    message: str
    asked_at: datetime | None

    @property
    def answered(self) -> bool:
        """Whether the provider has said where the call stands, if only that it knows none."""
        return self.outcome in GOOD

    @property
    def name(self) -> CallName:
        """Which call it is."""
        return self.account, reference_key(self.reference_id)

    @property
    def word(self) -> str:
        """The one word for people: the result, else the state, else why there is none."""
        return self.result or self.state or self.outcome


COLUMNS: Final = tuple(field.name for field in fields(Line))


def line_of(account: str, asked: ReferenceId, answer: Answer, now: float) -> Line:
    """Return what an answer means for a call, as the exporter would decide it.

    Args:
        account: the name of the account.
        asked: the id that was asked for.
        answer: what came back, or the failure that came instead of it.
        now: Unix time of the answer.
    """
    line = Line(
        asked,
        account,
        state=None,
        result=None,
        status=None,
        duration=None,
        key=None,
        outcome=answer.outcome,
        code=answer.code,
        message=answer.message,
        asked_at=datetime.fromtimestamp(now, UTC).replace(microsecond=0),
    )
    decided = verdict(WatchedCall(0, asked, now), answer, now, _FOR_EVER)
    if isinstance(decided, Finished):
        return replace(
            line,
            state=FINISHED,
            result=decided.result,
            status=decided.status,
            duration=decided.duration,
            key=decided.key,
            message=_GUESSED if OddField.SENT_RESULT in decided.odd else "",
        )
    if isinstance(decided, PollAgain):
        return replace(line, state=decided.state)
    message = line.message or _WORDS.get(decided.outcome, "")
    return replace(line, outcome=decided.outcome, message=message)
