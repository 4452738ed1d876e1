"""Calls at the provider: the states that they pass through, and what GetSendStatus answers in each.

Field names, codes and their mix of strings and numbers follow the provider's page of GetSendStatus
(https://developers.esms.vn, "Hàm lấy trạng thái cuộc gọi").
"""

from __future__ import annotations

import math
import random
from enum import IntEnum
from typing import Annotated, Final

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

# Errors do not repeat the input, because some inputs are secrets.
CONFIG: Final = ConfigDict(extra="forbid", hide_input_in_errors=True)
NotNegative = Annotated[float, Field(ge=0)]

ANSWERED: Final = "ANSWERED"
PRICE_PER_MINUTE: Final = 700.0  # VND for each started minute of a call of a mix


class SendStatus(IntEnum):
    """The field `SendStatus`."""

    AWAITING_APPROVAL = 1
    QUEUED = 2
    REJECTED = 4
    FINISHED = 5
    SENT = 7


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Plan:
    """The course of a call; times are in seconds. By default it is answered, and finished at once.

    A call is not found at first (code 105), then in SendStatus 1, 2 and 7, then finished.
    """

    unknown_for: NotNegative = 0.0
    approval: NotNegative = 0.0
    queued: NotNegative = 0.0
    sent: NotNegative = 0.0
    rejected: bool = False  # the approval ends in SendStatus 4; queued and sent are left out
    sent_result: int = 1
    call_status: str = ANSWERED
    duration: int | float = 13  # odd values are allowed, for tests
    ivr: str = ""
    price: NotNegative = 0.0  # VND, taken from the account's balance when the call is placed

    @property
    def ends_after(self) -> float:
        """Seconds from placing the call to its last state."""
        start = self.unknown_for + self.approval
        return start if self.rejected else start + self.queued + self.sent

    def status(self, age: float) -> SendStatus | None:
        """Return the state at an age in seconds; None while the id is not found."""
        if age < self.unknown_for:
            return None
        if age >= self.ends_after:
            return SendStatus.REJECTED if self.rejected else SendStatus.FINISHED
        age -= self.unknown_for
        if age < self.approval:
            return SendStatus.AWAITING_APPROVAL
        return SendStatus.QUEUED if age < self.approval + self.queued else SendStatus.SENT


@dataclass(frozen=True, slots=True)
class Call:
    """A call that an account placed, at a time of the provider's clock in seconds."""

    account: str
    reference_id: str
    placed_at: float
    plan: Plan

    def finished(self, now: float) -> bool:
        """Return whether the call has reached its last state."""
        return now - self.placed_at >= self.plan.ends_after

    def answer(self, now: float = math.inf) -> dict[str, object] | None:
        """Return the fields that GetSendStatus answers; None while the id is not found."""
        plan = self.plan
        status = plan.status(now - self.placed_at)
        if status is None:
            return None
        finished = status is SendStatus.FINISHED
        return {
            "CallDuration": plan.duration if finished else 0,
            "CallStatus": plan.call_status if finished else "",
            "CodeResponse": "100",
            "Ivr": plan.ivr if finished else "",
            "ReferenceId": self.reference_id,
            "SendStatus": int(status),
            "SentResult": plan.sent_result if finished else 0,
        }


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Mix:
    """How often calls end in which way.

    Attributes:
        answered, unanswered, busy, failed, silent: weights of the ends; `silent` is the documented
            failure with an empty `CallStatus`.
        rejected: share of calls that are not approved, 0 to 1.
        pressed: share of answered calls in which a key is pressed, 0 to 1.
        keys: keys to choose from; one that is named twice is chosen twice as often.
    """

    answered: float = 62
    unanswered: float = 20
    busy: float = 8
    failed: float = 5
    silent: float = 5
    rejected: float = 0.02
    pressed: float = 0.35
    keys: str = "11111222390*#"

    def draw(self, rng: random.Random) -> Plan:
        """Draw a plan."""
        # Two pages of the provider spell "no answer" differently, and SentResult does not follow
        # from CallStatus.
        no_answer = rng.choice(("NOANSWERED", "NO ANSWER")), rng.randint(0, 1)
        ends = ((ANSWERED, 1), no_answer, ("BUSY", 1), ("FAILED", 0), ("", 0))
        weights = (self.answered, self.unanswered, self.busy, self.failed, self.silent)
        call_status, sent_result = rng.choices(ends, weights)[0]
        rejected = rng.random() < self.rejected
        answered = call_status == ANSWERED and not rejected
        duration = min(600, 1 + int(rng.expovariate(1 / 22))) if answered else 0
        return Plan(
            # Most ids are found at once; the others are what `not_found_grace` is for.
            unknown_for=rng.uniform(0, 2) if rng.random() < 0.3 else 0,
            approval=rng.uniform(0, 4),
            queued=rng.uniform(0, 10),
            sent=rng.uniform(3, 30) + duration,
            rejected=rejected,
            sent_result=sent_result,
            call_status=call_status,
            duration=duration,
            ivr=rng.choice(self.keys) if answered and rng.random() < self.pressed else "",
            price=PRICE_PER_MINUTE * math.ceil(duration / 60),
        )


def normalize_id(reference_id: str) -> str:
    """Return an id as the provider shows it: upper case, without blanks."""
    return "".join(reference_id.split()).upper()
