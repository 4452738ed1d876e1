from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from exporter.simulator import Account, AccountState, Mix, Operation, Plan, Reply
from exporter.simulator.provider import Provider
from exporter.simulator.traffic import Traffic

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


@pytest.mark.parametrize(("account", "reference_id"), [("nobody", ID), ("main", " \t")])
def test_calls_that_are_refused(account: str, reference_id: str) -> None:
    with pytest.raises(ValueError, match=r"account|reference_id"):
        Scene().provider.add_call(account, reference_id)


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
    scene = Scene(mix=Mix(answered=1, unanswered=0, busy=0, failed=0, silent=0, rejected=0))
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


def test_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.simulator.traffic.MAX_IDS", 2)
    clock = Clock()
    traffic = Traffic(clock)
    with traffic.request("main", "A"), traffic.request("main", "B"), traffic.request("b", "A"):
        assert traffic.open == 3
    assert not traffic.overlapping
    clock.now += 0.9
    with traffic.request("main", "A"), traffic.request("main", "A"):
        clock.now += 0.1
    with traffic.request("main", "C"), traffic.request("main", ""):
        pass
    for key in (("main", "x", "100"), ("main", "x", "101"), ("b", "x", "100")):
        traffic.requests[key] += 1
    assert (traffic.total(), traffic.total("main"), traffic.total(outcome="100")) == (3, 2, 2)
    assert traffic.total("b", "101") == 0
    assert traffic.overlapping == {"A"}
    assert traffic.by_reference_id == {"A": 4, "B": 1}
    assert traffic.state() == {
        "requests": {"b x 100": 1, "main x 100": 1, "main x 101": 1},
        "peak_rate": {"main": 4, "b": 1},
        "peak_open": {"main": 2, "b": 1},
        "open": 0,
        "overlapping": 1,
    }
