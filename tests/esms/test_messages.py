"""Messages: their look-up, and what its answer means."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.calls import (
    EXPIRED,
    WATCHED,
    BackOff,
    CallState,
    Finished,
    GiveUpPolicy,
    OddField,
    PollAgain,
    Receivers,
    Refused,
    Result,
    Status,
    WatchedMessage,
    verdict,
)
from exporter.config import AccountConfig
from exporter.esms.answers import Answer, read_callback, read_message_answer
from exporter.esms.client import EsmsClient
from exporter.esms.codes import Outcome
from exporter.ids import Kind, reference_id, reference_key
from exporter.secrets import Secret
from exporter.simulator import Account, Fault, FaultKind, Plan, Simulator

EXAMPLES = Path(__file__).parent / "examples"
ID = "434a124c-7818-4f45-bdf2-7f7b07fff210100"
NOW = 1_764_000_000.0
POLICY = GiveUpPolicy(not_found_grace=600, give_up_after=259_200)


def message(age: float = 60) -> WatchedMessage:
    return WatchedMessage(1, reference_id(ID), NOW - age)


def answer(**fields: object) -> Answer:
    document = {
        "CodeResponse": "100",
        "SMSID": ID,
        "SendFailed": 0,
        "SendStatus": 5,
        "SendSuccess": 1,
        "TotalPrice": 850.0,
        "TotalReceiver": 1,
        **fields,
    }
    return read_message_answer(json.dumps(document).encode())


def finished(delivered: int, failed: int, **more: object) -> Finished:
    result = Result.FAILURE if failed else Result.SUCCESS
    values = {"status": Status.NONE, "price": 850.0, **more}
    return Finished(result, receivers=Receivers(delivered, failed), **values)  # type: ignore[arg-type]


def test_the_documented_answers() -> None:
    read = read_message_answer((EXAMPLES / "get-message-status.ok.json").read_bytes())
    assert verdict(message(), read, NOW, POLICY) == finished(1, 0)
    body = (EXAMPLES / "get-message-status.authorize-failed.json").read_bytes()
    assert verdict(message(), read_message_answer(body), NOW, POLICY) == Refused(Outcome.AUTH)
    query = (EXAMPLES / "callback.message.query.txt").read_text().strip()
    called_back = read_callback(dict(parse_qsl(query)), Kind.MESSAGE)
    assert (called_back.delivered, called_back.failed, called_back.price) == (1, 0, 470.0)
    assert "0901888484" not in repr(called_back)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"SendSuccess": "100", "SendFailed": "69"}, finished(100, 69)),
        ({"SendSuccess": 0, "SendFailed": 2.0}, finished(0, 2)),
        ({"SendSuccess": 3, "SendFailed": None}, finished(3, 0)),
        ({"SendSuccess": 3, "SendFailed": "x"}, finished(3, 0)),
        *(
            (
                {"SendSuccess": odd, "TotalReceiver": 7},
                finished(0, 7, odd=(OddField.SEND_SUCCESS,)),
            )
            for odd in (0, None, "", "x", -1, 0.5, True, [1], 10_000_001, 10**400)
        ),
        (
            {"SendSuccess": None, "TotalReceiver": None},
            finished(0, 1, odd=(OddField.SEND_SUCCESS,)),
        ),
        ({"SendStatus": 4, "SendSuccess": 0}, finished(0, 1, status=Status.REJECTED)),
        ({"SendStatus": "4", "TotalReceiver": 9}, finished(0, 9, status=Status.REJECTED)),
        *(
            ({"TotalPrice": price}, finished(1, 0, price=value))
            for price, value in [("470.0000", 470.0), (0, 0.0)]
        ),
        *(
            ({"TotalPrice": price}, finished(1, 0, price=None))
            for price in (None, "", "x", -1, 1e10, True, [5])
        ),
        ({"SendStatus": 1}, PollAgain(CallState.AWAITING_APPROVAL)),
        ({"SendStatus": 2}, PollAgain(CallState.QUEUED)),
        ({"SendStatus": 7}, PollAgain(CallState.AWAITING_REPORT)),
        *(({"SendStatus": odd}, PollAgain(CallState.UNKNOWN)) for odd in (None, 0, 9, "x")),
        ({"SMSID": ID.upper() + " "}, finished(1, 0)),
        ({"SMSID": None}, finished(1, 0)),
        ({"SMSID": "another"}, BackOff(Outcome.BAD_RESPONSE)),
        ({"CodeResponse": "105"}, PollAgain(CallState.NOT_FOUND)),
    ],
)
def test_verdicts(fields: dict[str, object], expected: object) -> None:
    assert verdict(message(), answer(**fields), NOW, POLICY) == expected


def test_a_message_expires_as_a_call_does() -> None:
    assert verdict(message(259_200), answer(SendStatus=2), NOW, POLICY) == EXPIRED
    assert verdict(message(259_200), answer(), NOW, POLICY) == finished(1, 0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
)
FIELDS = ("CodeResponse", "SMSID", "SendStatus", "SendSuccess", "SendFailed", "TotalReceiver")


@given(st.binary() | st.dictionaries(st.sampled_from((*FIELDS, "TotalPrice")), JSON))
def test_every_answer_has_a_verdict(document: object) -> None:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    decided = verdict(message(), read_message_answer(body), NOW, POLICY)
    if isinstance(decided, Finished) and decided.receivers:
        assert sum(decided.receivers) >= 1
        assert (decided.result is Result.SUCCESS) == (decided.receivers.failed == 0)


MAIN = Account("main", "key", "secret")


def client_of(simulator: Simulator) -> EsmsClient:
    account = AccountConfig(
        name="main",
        api_key=Secret("key"),
        secret_key=Secret("secret"),
        base_url=simulator.url,
        message_url=simulator.url,
    )
    return EsmsClient(account, 60)


@pytest.mark.parametrize("kind", Kind)
async def test_documented_oddities_of_answers_make_no_difference(kind: Kind) -> None:
    receivers = 3 if kind is Kind.MESSAGE else 0
    plan = Plan(receivers=receivers, failed=receivers // 3, ivr="1", price=470)
    async with Simulator(accounts=[MAIN]) as simulator, client_of(simulator) as client:
        results: dict[str, int | bool | str] = {ID: 1, "boolean": True, "text": "1", "word": "True"}
        for name, result in results.items():
            simulator.add_call("main", name, replace(plan, sent_result=result))
        for name in (*results, "not-found"):
            usual = await client.send_status(reference_id(name), kind)
            assert usual.receivers == (receivers or None if name in results else None)
            for oddity in ("text_numbers", "numeric_code", "moved_code", "respelled_id"):
                simulator.faults.set("it", Fault(FaultKind(oddity), count=1))
                odd = await client.send_status(reference_id(name), kind)
                assert reference_key(odd.reference_id or "") == reference_key(
                    usual.reference_id or ""
                )
                assert odd._replace(reference_id=usual.reference_id) == usual, oddity
        # Without `SendStatus`, it has not finished.
        simulator.faults.set("it", Fault(FaultKind.MISSING_FIELDS))
        bare = await client.send_status(reference_id(ID), kind)
        watched = WATCHED[kind](1, reference_id(ID), NOW)
        assert verdict(watched, bare, NOW, POLICY) == PollAgain(CallState.UNKNOWN)
