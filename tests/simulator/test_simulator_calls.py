from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from exporter.simulator.calls import Call, Mix, Plan, SendStatus, normalize_id

LONG = Plan(unknown_for=1, approval=2, queued=3, sent=4, duration=13, ivr="1")
END = {
    "CallDuration": 13,
    "CallStatus": "ANSWERED",
    "CodeResponse": "100",
    "Ivr": "1",
    "ReferenceId": "ID",
    "SendStatus": 5,
    "SentResult": 1,
}
NOT_ANSWERED = {"CallDuration": 0, "CallStatus": "", "Ivr": "", "SentResult": 0}


@pytest.mark.parametrize(
    ("plan", "age", "status"),
    [
        (LONG, 0, None),
        (LONG, 0.9, None),
        (LONG, 1, SendStatus.AWAITING_APPROVAL),
        (LONG, 2.9, SendStatus.AWAITING_APPROVAL),
        (LONG, 3, SendStatus.QUEUED),
        (LONG, 5.9, SendStatus.QUEUED),
        (LONG, 6, SendStatus.SENT),
        (LONG, 9.9, SendStatus.SENT),
        (LONG, 10, SendStatus.FINISHED),
        (LONG, math.inf, SendStatus.FINISHED),
        (replace(LONG, queued=math.inf), 1e9, SendStatus.QUEUED),
        (replace(LONG, rejected=True), 2.9, SendStatus.AWAITING_APPROVAL),
        (replace(LONG, rejected=True), 3, SendStatus.REJECTED),
    ],
)
def test_a_call_passes_through_its_states(plan: Plan, age: float, status: SendStatus) -> None:
    call = Call("main", "ID", 100.0, plan)
    answer = call.answer(100.0 + age)
    if status is None:
        assert answer is None
    else:
        finished = status is SendStatus.FINISHED
        assert answer == END | {"SendStatus": status} | ({} if finished else NOT_ANSWERED)
    assert call.finished(100.0 + age) == (status in {SendStatus.FINISHED, SendStatus.REJECTED})


@pytest.mark.parametrize("text", ["ab-cd", " AB-CD", "Ab-\tcD \n", "ab- cd"])
def test_ids_are_normalized(text: str) -> None:
    assert normalize_id(text) == "AB-CD"


def test_plans_come_from_the_seed() -> None:
    plans = [Mix().draw(random.Random(seed)) for seed in range(300)]
    assert plans == [Mix().draw(random.Random(seed)) for seed in range(300)]
    ends = {plan.call_status for plan in plans}
    assert ends == {"ANSWERED", "NOANSWERED", "NO ANSWER", "BUSY", "FAILED", ""}
    assert any(plan.rejected for plan in plans)
    assert any(plan.unknown_for for plan in plans)
    assert {plan.ivr for plan in plans} > {"", "1", "2"}
    for plan in plans:
        answered = plan.call_status == "ANSWERED" and not plan.rejected
        assert (plan.duration > 0) == (plan.price > 0) == answered
