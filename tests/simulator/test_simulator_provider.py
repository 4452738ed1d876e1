from __future__ import annotations

import math
import random
from dataclasses import replace
from uuid import UUID

import pytest

from exporter.simulator import (
    Account,
    AccountState,
    Call,
    Fault,
    FaultKind,
    Faults,
    Operation,
    Plan,
    Provider,
    Reply,
    SendStatus,
    Traffic,
    draw_plan,
)

MAIN = Account("main", "key", "secret")
ID = "505139D7-54F8-48A9-88FA-9460A78731DD"
CALL = {"TemplateId": "1", "Phone": "0900000001"}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Scene:
    """A provider with one account, and requests of it."""

    def __init__(self, account: Account = MAIN, **options: object) -> None:
        self.clock = Clock()
        self.provider = Provider((account,), clock=self.clock, **options)  # type: ignore[arg-type]

    def ask(self, operation: str = "GetSendStatus", **params: str) -> Reply:
        params = {"ApiKey": "key", "SecretKey": "secret", **params}
        account = self.provider.account_of(params["ApiKey"])
        return self.provider.answer(Operation(operation), account, params)

    def place(self, **params: str) -> Reply:
        return self.ask(Operation.MAKE_CALL_RECORD, **CALL, **params)


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"ReferenceId": ID}, "100"),
        ({"ReferenceId": f" {ID.lower()} "}, "100"),
        ({"ReferenceId": ID, "ApiKey": "other key"}, "105"),
        ({"ReferenceId": str(UUID(int=1))}, "105"),
        ({"ReferenceId": " "}, "851"),
        ({}, "851"),
        ({"ReferenceId": ID, "ApiKey": "unknown"}, "101"),
        ({"ReferenceId": ID, "SecretKey": "other"}, "101"),
    ],
)
def test_codes_of_get_send_status(params: dict[str, str], code: str) -> None:
    scene = Scene()
    scene.provider.put_account(Account("other", "other key", "secret"))
    scene.provider.add_call("main", ID.lower() + " ", Plan())
    reply = scene.ask(**params)
    assert reply.code == code
    assert reply.fields.get("CodeResponse", reply.fields.get("CodeResult")) == code
    assert reply.fields.get("ReferenceId", ID) == ID


def test_speed_is_that_of_calls() -> None:
    scene = Scene(speed=10.0)
    scene.provider.add_call("main", ID, Plan(unknown_for=20))
    assert scene.ask(ReferenceId=ID).code == "105"
    scene.clock.now += 2.1
    assert scene.ask(ReferenceId=ID).code == "100"


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (AccountState.REVOKED, "101"),
        (AccountState.IP_BLOCKED, "140"),
        (AccountState.LOCKED, "143"),
    ],
)
@pytest.mark.parametrize("operation", list(Operation))
def test_states_of_an_account(operation: Operation, state: AccountState, code: str) -> None:
    scene = Scene(replace(MAIN, state=state))
    assert scene.ask(operation, **CALL).code == code
    scene.provider.put_account(MAIN)
    assert scene.ask(operation, **CALL).code != code


def test_the_limit_per_second() -> None:
    scene = Scene(replace(MAIN, tps=2))
    codes = []
    for pause in (0.3, 0.3, 0.3, 0.2, 0.0):
        codes.append(scene.ask().code)
        scene.clock.now += pause
    assert codes == ["851", "851", "160", "160", "851"]


def test_unknown_ids_are_found() -> None:
    plans = []
    for scene in (Scene(find_unknown_ids=True, seed=3), Scene(find_unknown_ids=True, seed=3)):
        scene.ask(ReferenceId=ID.lower())
        scene.ask(ReferenceId="8eb2af6d-fb4c4814-b9cc-4c0e3ed32edf ")
        assert scene.ask(ReferenceId="no id").code == "105"
        plans.append([call.plan for call in scene.provider.calls.values()])
        scene.clock.now += 3600
        assert scene.ask(ReferenceId=ID).code == "100"
    assert plans[0] == plans[1]
    assert len(plans[0]) == 2


def test_the_oldest_call_is_forgotten() -> None:
    scene = Scene(max_calls=2)
    for name in ("a", "b", "b", "c"):
        scene.provider.add_call("main", name)
    assert list(scene.provider.calls) == [("main", "B"), ("main", "C")]


def test_no_secret_is_shown() -> None:
    with pytest.raises(ValueError, match="tps") as caught:
        replace(MAIN, secret_key="hidden", tps=-1)
    assert "hidden" not in str(caught.value)
    assert "key" not in repr(MAIN)


@pytest.mark.parametrize(
    ("operation", "params", "code"),
    [
        (Operation.MAKE_CALL_RECORD, {}, "100"),
        (Operation.MAKE_CALL_TEMPLATE, {"Phone": "84900000001"}, "100"),
        (Operation.MAKE_CALL_TEMPLATE, {"Phone": "+84900000001"}, "100"),
        (Operation.MAKE_CALL_RECORD, {"TemplateId": "9"}, "106"),
        (Operation.MAKE_CALL_TEMPLATE, {"TemplateId": "9"}, "104"),
        (Operation.MAKE_CALL_TEMPLATE, {"Phone": "12"}, "108"),
        (Operation.MAKE_CALL_TEMPLATE, {"Phone": ""}, "108"),
    ],
)
def test_codes_of_make_call(operation: Operation, params: dict[str, str], code: str) -> None:
    scene = Scene()
    reply = scene.ask(operation, **{**CALL, **params})
    assert (reply.code, reply.fields["CodeResult"]) == (code, code)
    assert len(scene.provider.calls) == (code == "100")


def test_a_placed_call_is_found_and_costs_money() -> None:
    scene = Scene(draw=lambda _: Plan(sent=5, price=700))
    reply = scene.place()
    assert set(reply.fields) == {"CodeResult", "SMSID"}
    sms_id = str(reply.fields["SMSID"])
    assert sms_id.endswith(" ")
    scene.clock.now += 3600
    assert scene.ask(ReferenceId=sms_id).fields["SendStatus"] == 5
    balance = scene.ask(Operation.GET_BALANCE).fields["Balance"]
    assert isinstance(balance, int)
    assert 0 < balance < MAIN.balance
    assert Scene(replace(MAIN, balance=100)).place().code == "103"


def test_a_request_id_blocks_for_a_day() -> None:
    scene = Scene()
    codes = [scene.place(RequestID="a").code for _ in range(2)]
    codes.append(scene.ask(Operation.MAKE_CALL_TEMPLATE, **CALL, RequestId="a").code)
    codes.append(scene.place().code)
    scene.clock.now += 24 * 3600 + 1
    assert [*codes, scene.place(RequestID="a").code] == ["100", "124", "124", "100", "100"]


def test_traffic() -> None:
    clock = Clock()
    traffic = Traffic(clock)
    with traffic.request("main"), traffic.request("main"), traffic.request("b"):
        assert traffic.open == 3
    clock.now += 0.9
    with traffic.request("main"):
        clock.now += 0.1
    with traffic.request("main"):
        pass
    for key in (("main", "x", "100"), ("main", "x", "101"), ("b", "x", "100")):
        traffic.requests[key] += 1
    assert (traffic.total(), traffic.total("main"), traffic.total(outcome="100")) == (3, 2, 2)
    assert traffic.total("b", "101") == traffic.open == 0
    assert (traffic.peak_rate, traffic.peak_open) == ({"main": 3, "b": 1}, {"main": 2, "b": 1})


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


def test_plans_come_from_the_seed() -> None:
    plans = [draw_plan(random.Random(seed)) for seed in range(300)]
    assert plans == [draw_plan(random.Random(seed)) for seed in range(300)]
    ends = {plan.call_status for plan in plans}
    assert ends == {"ANSWERED", "NOANSWERED", "NO ANSWER", "BUSY", "FAILED", ""}
    assert any(plan.rejected for plan in plans)
    assert any(plan.unknown_for for plan in plans)
    assert {plan.ivr for plan in plans} > {"", "1", "2"}
    for plan in plans:
        answered = plan.call_status == "ANSWERED" and not plan.rejected
        assert (plan.duration > 0) == (plan.price > 0) == answered


def hits(
    faults: Faults, account: str = "main", operation: str = "GetSendStatus", call: str = ""
) -> list[str]:
    return [fault.kind for fault in faults.draw(account, operation, call) if fault is not None]


def test_a_fault_hits_its_account_operation_call_and_count() -> None:
    faults = Faults()
    assert hits(faults) == []
    faults.set("a", Fault(FaultKind.HANG, account="main", count=2))
    assert hits(faults, "other") == []
    assert [hits(faults) for _ in range(3)] == [["hang"], ["hang"], []]
    faults.set("b", Fault(FaultKind.EMPTY, operation="GetBalance_json"))
    faults.set("c", Fault(FaultKind.HTML, reference_id="ID"))
    assert hits(faults) == []
    assert hits(faults, operation="GetBalance_json") == ["empty"]
    assert hits(faults, call="ID") == ["html"]
    faults.clear("b")
    faults.clear("b")
    assert list(faults.active) == ["c"]
    faults.clear()
    assert hits(faults, call="ID") == []


def test_the_first_latency_and_the_first_other_fault_hit() -> None:
    faults = Faults()
    faults.set("bad", Fault(FaultKind.HTML))
    faults.set("worse", Fault(FaultKind.RESET, count=1))
    faults.set("late", Fault(FaultKind.LATENCY, seconds=0.1))
    faults.set("later", Fault(FaultKind.LATENCY, seconds=0.2, count=1))
    assert hits(faults) == ["latency", "html"]
    assert list(faults.active) == ["bad", "worse", "late", "later"]


def test_probability_comes_from_the_seed() -> None:
    def drawn(seed: int) -> list[bool]:
        faults = Faults(seed)
        faults.set("some", Fault(FaultKind.EMPTY, probability=0.3))
        return [bool(hits(faults)) for _ in range(500)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert 100 < sum(drawn(1)) < 200
