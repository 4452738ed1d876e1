from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from exporter.simulator import provider as provider_module
from exporter.simulator.accounts import Account, AccountState
from exporter.simulator.life import Plan
from exporter.simulator.mix import Mix
from exporter.simulator.placing import new_id, planned
from exporter.simulator.provider import Provider, UnknownIds
from exporter.simulator.replies import Operation, Reply
from exporter.simulator.traffic import Traffic, Window

MAIN = Account("main", "key", "secret")
ID = "505139D7-54F8-48A9-88FA-9460A78731DD"
CALL = {"TemplateId": "1", "Phone": "0900000001"}
NOON = datetime(2026, 11, 24, 5, tzinfo=UTC)  # 12:00 in Vietnam


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Given:
    """A provider with one account, and requests of it."""

    def __init__(self, account: Account = MAIN, **choices: object) -> None:
        self.clock = Clock()
        self.provider = Provider(
            (account,),
            clock=self.clock,
            today=lambda: NOON,
            **choices,  # type: ignore[arg-type]  # as the test says
        )

    def ask(self, operation: Operation = Operation.GET_SEND_STATUS, **params: str) -> Reply:
        params = {"ApiKey": "key", "SecretKey": "secret", **params}
        account = self.provider.account_of(params["ApiKey"])
        return self.provider.answer(operation, account, params)


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"ReferenceId": ID}, "100"),
        ({"ReferenceId": f" {ID.lower()} "}, "100"),
        ({"ReferenceId": new_id(random.Random(1))}, "105"),
        ({"ReferenceId": " "}, "851"),
        ({}, "851"),
        ({"ReferenceId": ID, "ApiKey": "other"}, "101"),
        ({"ReferenceId": ID, "SecretKey": "other"}, "101"),
    ],
)
def test_codes_of_get_send_status(params: dict[str, str], code: str) -> None:
    given = Given()
    given.provider.add_call("main", ID.lower() + " ", Plan())
    reply = given.ask(Operation.GET_SEND_STATUS, **params)
    assert reply.code == code
    assert reply.fields.get("CodeResponse", reply.fields.get("CodeResult")) == code
    assert reply.fields.get("ReferenceId", ID) == ID


def test_a_call_is_its_own_account_s() -> None:
    given = Given()
    given.provider.put_account(Account("other", "other key", "secret"))
    given.provider.add_call("other", ID, Plan())
    assert given.ask(ReferenceId=ID).code == "105"
    assert given.ask(ReferenceId=ID, ApiKey="other key").code == "100"


def test_an_id_appears_later_and_speed_brings_it_sooner() -> None:
    given = Given(speed=10.0)
    given.provider.add_call("main", ID, Plan(unknown_for=20))
    assert given.ask(ReferenceId=ID).code == "105"
    given.clock.now += 2.1
    assert given.ask(ReferenceId=ID).code == "100"


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (AccountState.REVOKED, "101"),
        (AccountState.IP_BLOCKED, "140"),
        (AccountState.LOCKED, "143"),
    ],
)
@pytest.mark.parametrize("operation", list(Operation))
def test_an_account_that_may_do_nothing(
    operation: Operation, state: AccountState, code: str
) -> None:
    given = Given(replace(MAIN, state=state))
    assert given.ask(operation, **CALL).code == code
    given.provider.put_account(MAIN)
    assert given.ask(operation, **CALL).code != code


def test_the_limit_per_second() -> None:
    given = Given(replace(MAIN, tps=2))
    codes = []
    for _ in range(4):
        codes.append(given.ask().code)
        given.clock.now += 0.3
    assert codes == ["851", "851", "160", "160"]
    given.clock.now += 0.1
    assert given.ask().code == "851"


def test_the_limit_over_http() -> None:
    given = Given(replace(MAIN, tps=1, http_429=True, retry_after="7"))
    given.ask()
    reply = given.ask()
    assert (reply.code, reply.status, reply.retry_after) == ("429", 429, "7")


def test_unknown_ids_are_found() -> None:
    plans = []
    for _ in range(2):
        given = Given(unknown_ids=UnknownIds.FOUND, mix=Mix(unknown_for=0), seed=3)
        assert given.ask(ReferenceId=ID.lower()).code == "100"
        assert given.ask(ReferenceId="8eb2af6d-fb4c4814-b9cc-4c0e3ed32edf ").code == "100"
        assert given.ask(ReferenceId="no id").code == "105"
        plans.append(given.provider.calls["main", ID].plan)
    assert plans[0] == plans[1]


def test_calls_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_module, "MAX_CALLS", 1)
    given = Given(unknown_ids=UnknownIds.FOUND)
    given.provider.add_call("main", ID, Plan())
    given.provider.add_call("main", ID, Plan(queued=1))
    with pytest.raises(ValueError, match="no room"):
        given.provider.add_call("main", "another")
    assert given.ask(ReferenceId=new_id(random.Random(1))).code == "105"


@pytest.mark.parametrize(("account", "reference_id"), [("nobody", ID), ("main", " \t")])
def test_calls_that_cannot_be(account: str, reference_id: str) -> None:
    with pytest.raises(ValueError, match=r"account|reference_id"):
        Given().provider.add_call(account, reference_id)


@pytest.mark.parametrize("name", ["name", "api_key", "secret_key"])
def test_accounts_have_names_and_keys(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        replace(MAIN, **{name: ""})  # type: ignore[arg-type]  # one of the texts


@pytest.mark.parametrize("tps", [0, -1, float("nan")])
def test_limits_are_above_zero(tps: float) -> None:
    with pytest.raises(ValueError, match="tps"):
        replace(MAIN, tps=tps)


@pytest.mark.parametrize("text", ["1\r\nX: y", "é"])
def test_retry_after_is_a_header(text: str) -> None:
    with pytest.raises(ValueError, match="retry_after"):
        replace(MAIN, retry_after=text)


def test_no_secret_is_shown() -> None:
    assert "key" not in repr(MAIN).replace("api_key", "").replace("secret_key", "")


def test_two_accounts_have_two_keys() -> None:
    given = Given()
    with pytest.raises(ValueError, match="api_key"):
        given.provider.put_account(Account("other", "key", "secret"))
    given.provider.put_account(replace(MAIN, api_key="new key"))
    assert given.ask().code == "101"
    assert given.ask(ApiKey="new key").code == "851"


def test_balance() -> None:
    given = Given(replace(MAIN, balance=36693))
    reply = given.ask(Operation.GET_BALANCE)
    assert reply.fields == {"Balance": 36693, "CodeResponse": "100", "UserID": 9999}
    reply = given.ask(Operation.GET_BALANCE, SecretKey="other")
    assert reply.fields == {"Balance": 0, "CodeResponse": "101", "ErrorMessage": "Authorize Failed"}


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
def test_placing(operation: Operation, params: dict[str, str], code: str) -> None:
    given = Given()
    reply = given.ask(operation, **{**CALL, **params})
    assert (reply.code, reply.fields["CodeResult"]) == (code, code)
    assert len(given.provider.calls) == (code == "100")


def test_a_placed_call_can_be_looked_up_and_costs_money() -> None:
    given = Given(mix=Mix(answered=1, unanswered=0, busy=0, failed=0, silent=0, rejected=0))
    reply = given.ask(Operation.MAKE_CALL_RECORD, **CALL)
    assert set(reply.fields) == {"CodeResult", "SMSID"}
    sms_id = str(reply.fields["SMSID"])
    assert sms_id.endswith(" ")
    given.clock.now += 3600
    assert given.ask(ReferenceId=sms_id).fields["SendStatus"] == 5
    balance = given.ask(Operation.GET_BALANCE).fields["Balance"]
    assert isinstance(balance, int)
    assert balance < MAIN.balance


def test_too_low_a_balance() -> None:
    given = Given(replace(MAIN, balance=100))
    assert given.ask(Operation.MAKE_CALL_RECORD, **CALL).code == "103"


def test_a_request_id_blocks_for_a_day() -> None:
    given = Given()
    record = {**CALL, "RequestID": "a"}
    assert given.ask(Operation.MAKE_CALL_RECORD, **record).code == "100"
    assert given.ask(Operation.MAKE_CALL_RECORD, **record).code == "124"
    assert given.ask(Operation.MAKE_CALL_TEMPLATE, **CALL, RequestId="a").code == "124"
    assert given.ask(Operation.MAKE_CALL_RECORD, **CALL).code == "100"
    given.clock.now += 24 * 3600 + 1
    assert given.ask(Operation.MAKE_CALL_RECORD, **record).code == "100"


@pytest.mark.parametrize(
    ("params", "later"),
    [
        ({"MaxRetry": "2", "WaitRetry": "300"}, 600),
        ({"MaxRetry": "many", "WaitRetry": "300"}, 0),
        ({"SendDate": "2026/11/24 13:00:00"}, 3600),
        ({"SendDate": "2026/11/24 11:00:00"}, 0),
        ({"SendDate": "tomorrow"}, 0),
    ],
)
def test_what_stretches_a_call(params: dict[str, str], later: float) -> None:
    mix = Mix(answered=0, busy=0, failed=0, silent=0, rejected=0)
    usual = planned(mix, random.Random(1), {}, NOON).ends_after
    stretched = planned(mix, random.Random(1), params, NOON).ends_after
    assert usual + later - 1e-6 <= stretched <= usual + later + 3 * mix.sent


def test_a_window_is_one_second() -> None:
    window = Window()
    for time in (0.0, 0.5, 0.9):
        window.add(time)
    assert [window.count(time) for time in (0.9, 1.0, 1.6, 5)] == [3, 2, 1, 0]


def test_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.simulator.traffic.MAX_IDS", 2)
    clock = Clock()
    traffic = Traffic(clock)
    with traffic.request("main", "A"), traffic.request("main", "B"), traffic.request("b", "A"):
        assert traffic.open == 3
    assert not traffic.overlapping
    with traffic.request("main", "A"), traffic.request("main", "A"):
        clock.now += 2
    with traffic.request("main", "C"), traffic.request("main", ""):
        pass
    traffic.count("main", "GetSendStatus", "100")
    traffic.count("main", "GetSendStatus", "101")
    traffic.count("b", "GetSendStatus", "100")
    assert traffic.total() == 3
    assert (traffic.total("main"), traffic.total(outcome="100")) == (2, 2)
    assert traffic.total("b", "101") == 0
    assert traffic.overlapping == {"A"}
    assert traffic.by_reference_id == {"A": 4, "B": 1}
    assert traffic.peak_rate == {"main": 4, "b": 1}
    assert traffic.peak_open == {"main": 2, "b": 1}
    assert traffic.open == 0
    state = traffic.state()
    assert state["asked_twice_at_once"] is True
