from __future__ import annotations

import json
from codecs import BOM_UTF8
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.esms.answers import (
    Answer,
    read_answer,
    read_balance,
    read_placed,
    read_price,
)
from exporter.esms.codes import CODES, Outcome
from exporter.secrets import Secret

EXAMPLES = Path(__file__).parent / "examples"


@pytest.mark.parametrize(
    ("text", "price"),
    [
        *(("350.5000", 350.5), ("0.0000", 0.0), (" 12 ", 12.0), ("007", 7.0)),
        *(("1000000000", 1e9), ("1000000000.1", None), ("9" * 20, None), ("9" * 400, None)),
        *((text, None) for text in ("", " ", "x", "-1", "+1", "1_0", "1e3", "1,5", ".5", "5.")),
        *((text, None) for text in ("nan", "inf", "1 0", "0x1", "\u0661", "1\n2")),
    ],
)
def test_prices_are_plain_decimals(text: str, price: float | None) -> None:
    assert read_price(text) == price


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ok", Answer(Outcome.OK, "100", balance=36_693.0)),
        ("authorize-failed", Answer(Outcome.AUTH, "101", "Authorize Failed")),
    ],
)
def test_the_documented_balances(name: str, expected: Answer) -> None:
    assert read_balance((EXAMPLES / f"get-balance.{name}.json").read_bytes()) == expected


@pytest.mark.parametrize(
    ("value", "balance"),
    [
        *(("36693", 36_693.0), ("36693.5", 36_693.5), ("0", 0.0), ("1e15", 1e15)),
        *(('"36693"', 36_693.0), ('" 36693.0000 "', 36_693.0)),
        *((value, None) for value in ("null", "true", "[5]", '{"VND": 5}', '""', '"much"')),
        *((value, None) for value in ("-1", '"-0.5"', "NaN", '"nan"', "Infinity", '"inf"')),
        *((value, None) for value in ("1000000000000001", "1e308", "9" * 400, '"1_000"', '"1,5"')),
    ],
)
def test_a_balance_is_a_number_that_it_can_be(value: str, balance: float | None) -> None:
    answer = read_balance(f'{{"CodeResponse": "100", "Balance": {value}}}'.encode())
    outcome = Outcome.OK if balance is not None else Outcome.BAD_RESPONSE
    assert answer == Answer(outcome, "100", balance=balance)


def test_a_good_answer_without_a_balance_is_none() -> None:
    assert read_balance(b'{"CodeResponse": 100}') == Answer(Outcome.BAD_RESPONSE, "100")


@pytest.mark.parametrize("code", [code for code in CODES if code != "100"] + ["777"])
def test_a_refusal_has_no_balance_whatever_it_says(code: str) -> None:
    for value in (0, 5_000_000):
        answer = read_balance(json.dumps({"CodeResponse": code, "Balance": value}).encode())
        assert answer.outcome is CODES.get(code, Outcome.API_ERROR)
        assert answer.code == code
        assert answer.balance is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.binary()
    | st.builds(
        lambda code, value: json.dumps({"CodeResponse": code, "Balance": value}).encode(),
        st.sampled_from(["100", 100, "101", None, ""]) | JSON,
        JSON,
    )
)
def test_any_bytes_are_an_answer(body: bytes) -> None:
    answer = read_balance(body)
    assert (answer.outcome is Outcome.OK) == (answer.balance is not None)
    assert answer.balance is None or 0 <= answer.balance <= 1e15


@pytest.mark.parametrize(
    ("body", "outcome", "reference_id"),
    [
        (b'{"CodeResult":"100","SMSID":"8eb2af6d-fb4c4814 "}', Outcome.OK, "8eb2af6d-fb4c4814"),
        (b'{"CodeResult":100,"SMSID":"a"}', Outcome.OK, "a"),
        (b'{"CodeResult":"100"}', Outcome.BAD_RESPONSE, None),
        (b'{"CodeResult":"100","SMSID":null}', Outcome.BAD_RESPONSE, None),
        (b'{"CodeResult":"100","SMSID":" "}', Outcome.BAD_RESPONSE, None),
        (b'{"CodeResult":"100","SMSID":"a b"}', Outcome.BAD_RESPONSE, None),
        (b'{"CodeResult":"104","ErrorMessage":"Template not found"}', Outcome.API_ERROR, None),
        (b"[]", Outcome.BAD_RESPONSE, None),
        (b"", Outcome.BAD_RESPONSE, None),
    ],
)
def test_placed_calls(body: bytes, outcome: Outcome, reference_id: str | None) -> None:
    answer = read_placed(body)
    assert (answer.outcome, answer.reference_id) == (outcome, reference_id)


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("\x1b[31mno\nmoney\u202e" + "x" * 5000, "[31mnomoney" + "x" * 189),
        ("0901234567 is blocked", "*** is blocked"),
        ("(+84) 90-123.45.67: no", "(***: no"),
        (f"{'x' * 195}0901234567", f"{'x' * 195}***"),
        ("code 105, 123456 of 7", "code 105, 123456 of 7"),
        ("0901234567b is a key", "(withheld: it repeats the request)"),
    ],
)
def test_a_message_is_bounded_printable_and_without_phone_numbers(told: str, shown: str) -> None:
    body = json.dumps({"CodeResult": "108", "ErrorMessage": told}).encode()
    assert read_answer(body, [Secret("0901234567b")]).message == shown


def test_a_byte_order_mark_is_skipped() -> None:
    answer = (EXAMPLES / "get-send-status.answered.json").read_bytes()
    balance = (EXAMPLES / "get-balance.ok.json").read_bytes()
    placed = b'{"CodeResult": "100", "SMSID": "8eb2af6d-fb4c4814-b9cc-4c0e3ed32edf "}'
    assert read_answer(BOM_UTF8 + answer) == read_answer(answer)
    assert read_balance(BOM_UTF8 + balance).balance == 36693
    assert read_placed(BOM_UTF8 + placed).reference_id == "8eb2af6d-fb4c4814-b9cc-4c0e3ed32edf"
    assert read_answer(b" " + BOM_UTF8 + answer).outcome is Outcome.BAD_RESPONSE
