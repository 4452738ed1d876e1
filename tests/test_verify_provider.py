"""The report on the provider's API, against the simulated one."""

from __future__ import annotations

import json

import pytest

from exporter.config import AccountConfig
from exporter.secrets import Secret
from exporter.simulator import Account, Fault, FaultKind, Plan, Simulator
from tools.verify_provider import main, report

CALL = "505139D7-54F8-48A9-88FA-9460A78731DD"
MESSAGE = "434a124c-7818-4f45-bdf2-7f7b07fff210100"


async def cells(fault: Fault | None = None, key: str = "key-of-main") -> dict[str, list[str]]:
    """Return the cells of each row of the report, by question."""
    accounts = [Account("main", "key-of-main", "secret-of-main")]
    async with Simulator(accounts=accounts) as simulator:
        simulator.add_call("main", CALL, Plan())
        simulator.add_call("main", MESSAGE, Plan(receivers=2, failed=1))
        if fault:
            simulator.faults.set("fault", fault)
        account = AccountConfig(
            name="verify",
            api_key=Secret(key),
            secret_key=Secret("secret-of-main"),
            base_url=simulator.url,
            message_url=simulator.url,
            balance_url=simulator.url,
        )
        lines = await report(account, CALL, MESSAGE)
        # The HTTP client itself repeats a request whose old connection was reset.
        if fault is None or fault.kind is not FaultKind.RESET:
            assert simulator.traffic.requests.total() == len(lines) - 6
        operations = {operation for _, operation, _ in simulator.traffic.requests}
        assert operations == {"GetSendStatus", "GetSendStatus?RefId=", "GetBalance_json"}
    shown = "\n".join(lines)
    for secret in (key, "secret-of-main", CALL, MESSAGE, MESSAGE.upper(), "0901234567"):
        assert secret not in shown
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[6:]]
    return {question: rest for question, *rest in rows}


async def test_the_documented_answers_differ_in_nothing() -> None:
    found = await cells()
    assert {row[-1] for row in found.values()} == {"none"}
    assert found["a call"][1:3] == ["100", 'CallStatus="ANSWERED", SendStatus=5, SentResult=1']
    assert found["a message"][1:3] == ["100", "SendStatus=5"]
    assert found["an unknown call"][1] == "105"
    assert found["a message, with wrong keys"][1] == "101"
    assert len(found) == 12


async def test_what_differs_is_named_without_its_value() -> None:
    answer = {
        "CodeResponse": 777,
        "ErrorMessage": "0901234567 key-of-main",
        "phonenumber": "0901234567",
        f"a {MESSAGE}": 1,
        "SendStatus": CALL,
        "SentResult": True,
    }
    found = await cells(Fault(FaultKind.RAW, body=json.dumps(answer), status=202))
    assert found["a call"][1:3] == ["777", "SentResult=true"]
    assert found["a call"][3].split("; ") == [
        "HTTP status 202 in place of 200",
        "outcome api_error (code 777) in place of ok",
        "undocumented code 777",
        "no field CallDuration",
        "no field CallStatus",
        "CodeResponse is a number in place of a string",
        "no field Ivr",
        "no field ReferenceId",
        "SendStatus is a string in place of a number",
        "SentResult is a boolean in place of a number",
        "undocumented field ErrorMessage, a string",
        "undocumented field with an odd name, a number",
        "undocumented field phonenumber, a string",
    ]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (FaultKind.HTML, "no JSON object, but "),
        (FaultKind.RESET, "the connection failed"),
        (FaultKind.GZIP_BOMB, "no JSON object, but "),
        (FaultKind.REDIRECT, "HTTP status 302 in place of 200; no JSON object"),
    ],
)
async def test_a_provider_that_does_not_answer(kind: FaultKind, expected: str) -> None:
    for row in (await cells(Fault(kind))).values():
        assert row[-1].startswith(expected)


async def test_refused_keys() -> None:
    found = await cells(key="another-key")
    assert found["a call"][-1].startswith("outcome auth (code 101) in place of ok")


def test_a_missing_or_wrong_variable(capsys: pytest.CaptureFixture[str]) -> None:
    assert main({"ESMS_API_KEY": "k"}) == 2
    assert capsys.readouterr().err == "set ESMS_SECRET_KEY in the environment\n"
    assert main({"ESMS_API_KEY": "a b", "ESMS_SECRET_KEY": "s"}) == 2
    assert "a b" not in capsys.readouterr().err
