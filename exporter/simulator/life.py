"""The life of a call as the provider tells it: pure functions of a plan and an age.

Field names, codes and their mix of strings and numbers follow the provider's page of GetSendStatus
(https://developers.esms.vn, "Hàm lấy trạng thái cuộc gọi").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

ANSWERED = "ANSWERED"


class SendStatus(IntEnum):
    """Where a call stands, as the field `SendStatus` says it."""

    AWAITING_APPROVAL = 1
    QUEUED = 2
    REJECTED = 4
    FINISHED = 5
    SENT = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will become of a call, and when. The default is an answered call, finished at once.

    Attributes:
        unknown_for: seconds after placing during which the id cannot be looked up yet (code 105).
        approval: seconds in SendStatus 1, after that.
        queued: seconds in SendStatus 2, after that.
        sent: seconds in SendStatus 7, after that; then the call is finished.
        rejected: the approval ends in SendStatus 4; queued and sent do not happen.
        sent_result: `SentResult` of the end; None leaves the field out.
        call_status: `CallStatus` of the end; None leaves the field out.
        duration: `CallDuration` of the end, seconds; odd values are allowed, for tests.
        ivr: the keys that the callee pressed.
        price: VND, taken from the account's balance when the call is placed.
        fields: laid over the fields of the last answer, for answers that no plan can describe;
            None is sent as null.
    """

    unknown_for: float = 0.0
    approval: float = 0.0
    queued: float = 0.0
    sent: float = 0.0
    rejected: bool = False
    sent_result: int | None = 1
    call_status: str | None = ANSWERED
    duration: float = 13
    ivr: str = ""
    price: float = 0.0
    fields: Mapping[str, object] | None = None

    def __post_init__(self) -> None:
        for name in ("unknown_for", "approval", "queued", "sent", "price"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected a number that is not negative")

    @property
    def ends_after(self) -> float:
        """Seconds from placing the call to its last state."""
        start = self.unknown_for + self.approval
        return start if self.rejected else start + self.queued + self.sent

    @property
    def last_status(self) -> SendStatus:
        """The state in which the call ends."""
        return SendStatus.REJECTED if self.rejected else SendStatus.FINISHED

    def status(self, age: float) -> SendStatus | None:
        """The state at an age in seconds; None while the id cannot be looked up yet."""
        if age < self.unknown_for:
            return None
        if age >= self.ends_after:
            return self.last_status
        age -= self.unknown_for
        if age < self.approval:
            return SendStatus.AWAITING_APPROVAL
        if age < self.approval + self.queued:
            return SendStatus.QUEUED
        return SendStatus.SENT


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was placed.

    Attributes:
        account: the name of the account that placed it.
        reference_id: in the form that the provider shows, see `shown_id`.
        placed_at: seconds of the provider's clock.
        plan: what will become of it.
    """

    account: str
    reference_id: str
    placed_at: float
    plan: Plan

    def finished(self, now: float) -> bool:
        """Whether the call has reached its last state."""
        return now - self.placed_at >= self.plan.ends_after

    def answer(self, now: float) -> dict[str, object] | None:
        """The fields that GetSendStatus answers; None while the id cannot be looked up yet."""
        plan = self.plan
        status = plan.status(now - self.placed_at)
        if status is None:
            return None
        fields: dict[str, object] = {
            "CallDuration": 0,
            "CallStatus": "",
            "CodeResponse": "100",
            "Ivr": "",
            "ReferenceId": self.reference_id,
            "SendStatus": int(status),
            "SentResult": 0,
        }
        if status is SendStatus.FINISHED:
            fields["CallDuration"] = plan.duration
            fields["Ivr"] = plan.ivr
            for name, value in (("CallStatus", plan.call_status), ("SentResult", plan.sent_result)):
                if value is None:
                    del fields[name]
                else:
                    fields[name] = value
        if plan.fields is not None and status is plan.last_status:
            fields.update(plan.fields)
        return fields

    def truth(self, now: float) -> dict[str, object]:
        """What the call ends with, and whether it has ended, for those who check an exporter."""
        plan = self.plan
        rejected = plan.rejected
        return {
            "reference_id": self.reference_id,
            "account": self.account,
            "send_status": int(plan.last_status),
            "sent_result": 0 if rejected else plan.sent_result,
            "call_status": "" if rejected else plan.call_status,
            "duration": 0 if rejected else plan.duration,
            "ivr": "" if rejected else plan.ivr,
            "finished": self.finished(now),
            "finishes_in": max(0.0, plan.ends_after - (now - self.placed_at)),
        }


def shown_id(reference_id: str) -> str:
    """An id as the provider shows it: upper case, without blanks. Equal ids become equal."""
    return "".join(reference_id.split()).upper()
