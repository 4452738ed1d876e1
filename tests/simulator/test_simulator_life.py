from __future__ import annotations

import random

import pytest

from exporter.simulator.life import Call, Plan, SendStatus, shown_id
from exporter.simulator.mix import Mix

LONG = Plan(unknown_for=1, approval=2, queued=3, sent=4, duration=13, ivr="1")


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
        (LONG, 1e9, SendStatus.FINISHED),
        (Plan(), 0, SendStatus.FINISHED),
        (Plan(rejected=True, approval=1, queued=9), 0, SendStatus.AWAITING_APPROVAL),
        (Plan(rejected=True, approval=1, queued=9), 1, SendStatus.REJECTED),
    ],
)
def test_a_call_moves_through_its_states(plan: Plan, age: float, status: SendStatus | None) -> None:
    assert plan.status(age) is status
    fields = Call("main", "ID", 100.0, plan).answer(100.0 + age)
    assert (fields and fields["SendStatus"]) == status


def test_the_last_answer_is_the_documented_one() -> None:
    call = Call("main", "505139D7-54F8-48A9-88FA-9460A78731DD", 0.0, Plan())
    assert call.answer(0.0) == {
        "CallDuration": 13,
        "CallStatus": "ANSWERED",
        "CodeResponse": "100",
        "Ivr": "",
        "ReferenceId": "505139D7-54F8-48A9-88FA-9460A78731DD",
        "SendStatus": 5,
        "SentResult": 1,
    }


@pytest.mark.parametrize(
    ("plan", "missing", "shown"),
    [
        (Plan(sent_result=None), {"SentResult"}, {}),
        (Plan(call_status=None), {"CallStatus"}, {}),
        (Plan(fields={"CallDuration": None, "New": 1}), set(), {"CallDuration": None, "New": 1}),
        (Plan(rejected=True, fields={"SendStatus": "4"}), set(), {"SendStatus": "4"}),
        (Plan(rejected=True), set(), {"SentResult": 0, "CallStatus": "", "CallDuration": 0}),
    ],
)
def test_odd_ends(plan: Plan, missing: set[str], shown: dict[str, object]) -> None:
    fields = Call("main", "ID", 0.0, plan).answer(0.0)
    assert fields is not None
    assert not missing & set(fields)
    assert shown.items() <= fields.items()


def test_fields_are_laid_over_the_last_answer_only() -> None:
    fields = Call("main", "ID", 0.0, Plan(queued=1, fields={"CallDuration": -1})).answer(0.5)
    assert fields is not None
    assert fields["CallDuration"] == 0


def test_truth() -> None:
    assert Call("main", "ID", 0.0, LONG).truth(4.0) == {
        "reference_id": "ID",
        "account": "main",
        "send_status": 5,
        "sent_result": 1,
        "call_status": "ANSWERED",
        "duration": 13,
        "ivr": "1",
        "finished": False,
        "finishes_in": 6.0,
    }
    rejected = Call("main", "ID", 0.0, Plan(rejected=True)).truth(1.0)
    assert (rejected["send_status"], rejected["sent_result"], rejected["duration"]) == (4, 0, 0)
    assert (rejected["finished"], rejected["finishes_in"]) == (True, 0.0)


@pytest.mark.parametrize("name", ["unknown_for", "approval", "queued", "sent", "price"])
@pytest.mark.parametrize("value", [-1, float("nan")])
def test_a_plan_does_not_go_back_in_time(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Plan(**{name: value})  # type: ignore[arg-type]  # the name is one of a number


@pytest.mark.parametrize("text", ["ab-cd", " AB-CD", "Ab-\tcD \n", "ab- cd"])
def test_ids_are_shown_alike(text: str) -> None:
    assert shown_id(text) == "AB-CD"


def test_plans_come_from_the_seed() -> None:
    first = [Mix().draw(random.Random(seed)) for seed in range(300)]
    assert first == [Mix().draw(random.Random(seed)) for seed in range(300)]
    ends = {plan.call_status for plan in first if not plan.rejected}
    assert ends == {"ANSWERED", "NOANSWERED", "NO ANSWER", "BUSY", "FAILED", ""}
    assert any(plan.rejected for plan in first)
    assert any(plan.unknown_for for plan in first)
    assert {plan.ivr for plan in first} > {"", "1", "2"}
    assert all(
        (plan.duration > 0 and plan.price > 0) == (plan.call_status == "ANSWERED")
        for plan in first
        if not plan.rejected
    )


def test_retries_stretch_a_call_until_somebody_answers() -> None:
    nobody = Mix(answered=0, unanswered=1, busy=0, failed=0, silent=0, rejected=0)
    rng = random.Random(1)
    plan = nobody.draw(rng)
    assert nobody.retried(plan, rng, retries=3, wait=60).ends_after > plan.ends_after + 180
    somebody = Mix(answered=1, unanswered=0, busy=0, failed=0, silent=0, rejected=0)
    answered = somebody.retried(plan, rng, retries=3, wait=60)
    assert answered.call_status == "ANSWERED"
    assert plan.ends_after + 60 < answered.ends_after
    assert somebody.retried(answered, rng, retries=3, wait=60) == answered
    rejected = Plan(rejected=True, call_status="")
    assert somebody.retried(rejected, rng, retries=3, wait=60) == rejected
