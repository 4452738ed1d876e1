from __future__ import annotations

from dataclasses import fields

import pytest

from exporter.simulator.accounts import Account
from exporter.simulator.faults import Fault, FaultKind, Faults
from exporter.simulator.life import Plan
from exporter.simulator.reading import InputError, mapping, parse, read


def hits(faults: Faults, account: str = "main", operation: str = "GetSendStatus") -> list[str]:
    return [fault.kind for fault in faults.draw(account, operation) if fault is not None]


def test_a_fault_keeps_to_its_account_operation_and_count() -> None:
    faults = Faults()
    assert hits(faults) == []
    faults.set("a", Fault(FaultKind.HANG, account="main", count=2))
    assert hits(faults, "other") == []
    assert [hits(faults) for _ in range(3)] == [["hang"], ["hang"], []]
    faults.set("b", Fault(FaultKind.EMPTY, operation="GetBalance_json"))
    assert hits(faults) == []
    assert hits(faults, operation="GetBalance_json") == ["empty"]


def test_a_late_answer_can_be_a_bad_one_and_the_first_fault_wins() -> None:
    faults = Faults()
    faults.set("bad", Fault(FaultKind.HTML))
    faults.set("worse", Fault(FaultKind.RESET, count=1))
    faults.set("late", Fault(FaultKind.LATENCY, seconds=0.1))
    faults.set("later", Fault(FaultKind.LATENCY, seconds=0.2, count=1))
    assert hits(faults) == ["latency", "html"]
    assert list(faults.state()) == ["bad", "worse", "late", "later"]


def test_probability_comes_from_the_seed() -> None:
    def drawn(seed: int) -> list[bool]:
        faults = Faults(seed)
        faults.set("some", Fault(FaultKind.EMPTY, probability=0.3))
        return [bool(hits(faults)) for _ in range(500)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert 100 < sum(drawn(1)) < 200


def test_faults_are_cleared() -> None:
    faults = Faults()
    faults.set("a", Fault(FaultKind.HANG))
    faults.set("b", Fault(FaultKind.HANG))
    assert "a" in faults
    assert (faults.clear("a"), faults.clear("a"), faults.clear(), faults.clear()) == (
        True,
        False,
        True,
        False,
    )
    assert hits(faults) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("probability", 1.1),
        ("probability", float("nan")),
        ("count", 0),
        ("seconds", -1),
        ("seconds", float("inf")),
        ("status", 99),
        ("status", 600),
        ("size", -1),
        ("size", 1 << 31),
        ("location", "/a\r\nX: y"),
        ("retry_after", "\n"),
    ],
)
def test_faults_that_cannot_be(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        Fault(FaultKind.RAW, **{name: value})  # type: ignore[arg-type]  # the wrong ones


def test_a_body_must_be_text_that_can_be_sent() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        Fault(FaultKind.RAW, body="\ud800")


@pytest.mark.parametrize(
    ("kind", "text", "error"),
    [
        (Fault, "{", "expected JSON"),
        (Fault, "", "expected JSON"),
        (Fault, "[" * 100_000, "expected JSON"),
        (Fault, '{"kind": "hang", "seconds": NaN}', "expected JSON: NaN"),
        (Fault, "[]", "expected a JSON object"),
        (Fault, "{}", "kind: missing"),
        (Fault, '{"kind": "explode"}', "kind: expected one of latency, hang"),
        (Fault, '{"kind": 1}', "kind: expected one of latency, hang"),
        (Fault, '{"kind": "hang", "colour": 1}', "colour: unknown; expected one of kind"),
        (Fault, '{"kind": "hang", "seconds": "1"}', "seconds: expected a number"),
        (Fault, '{"kind": "hang", "seconds": 1e999}', "seconds: expected a number"),
        (Fault, '{"kind": "hang", "seconds": true}', "seconds: expected a number"),
        (Fault, '{"kind": "hang", "count": true}', "count: expected a whole number or null"),
        (Fault, '{"kind": "hang", "count": 1.5}', "count: expected a whole number or null"),
        (Fault, '{"kind": "hang", "probability": 2}', "probability: expected"),
        (Fault, f'{{"kind": "hang", "seconds": 1{"0" * 400}}}', "seconds: expected a number"),
        (Plan, '{"rejected": 1}', "rejected: expected true or false"),
        (Plan, '{"ivr": 1}', "ivr: expected a text"),
        (Plan, '{"fields": []}', "fields: expected an object or null"),
        (Account, '{"name": "a", "api_key": "b"}', "secret_key: missing"),
    ],
)
def test_control_input_that_cannot_be_used(kind: type, text: str, error: str) -> None:
    with pytest.raises(InputError) as caught:
        read(kind, parse(text.encode()))
    assert str(caught.value).startswith(error)


def test_control_input() -> None:
    text = b'{"queued": 3, "sent_result": null, "ivr": "#", "fields": {"New": null}}'
    assert read(Plan, parse(text), queued=1, sent=2) == Plan(
        queued=3, sent=2, sent_result=None, ivr="#", fields={"New": None}
    )
    assert read(Fault, {}, kind=FaultKind.HANG) == Fault(FaultKind.HANG)
    assert mapping({}) == {}
    assert {field.name for field in fields(Fault)} >= {"kind", "probability", "count"}
