from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.calls import (
    ENDINGS,
    EXPIRED,
    BackOff,
    CallState,
    Finished,
    GiveUpPolicy,
    Key,
    OddField,
    PollAgain,
    Refused,
    Result,
    Status,
    WatchedCall,
    verdict,
)
from exporter.esms.answers import (
    Answer,
    read_answer,
    read_refusal,
    read_retry_after,
)
from exporter.esms.codes import CODES, Outcome
from exporter.ids import ReferenceId, reference_id, reference_key

EXAMPLES = Path(__file__).parent / "esms" / "examples"
ID = "505139D7-54F8-48A9-88FA-9460A78731DD"
NOW = 1_764_000_000.0
POLICY = GiveUpPolicy(not_found_grace=600, give_up_after=259_200)
DAY = 86_400.0


def call(age: float = 60, state: CallState = CallState.NEW, since: float = 60) -> WatchedCall:
    return WatchedCall(1, ReferenceId(ID), NOW - age, state, NOW - since)


def told(**fields: object) -> Answer:
    """Read the answer of a finished call, with these fields laid over it; `...` leaves one out."""
    document: dict[str, Any] = {
        "CallDuration": 13,
        "CallStatus": "ANSWERED",
        "CodeResponse": "100",
        "Ivr": "",
        "ReferenceId": ID,
        "SendStatus": 5,
        "SentResult": 1,
    }
    document.update(fields)
    return read_answer(json.dumps({k: v for k, v in document.items() if v is not ...}).encode())


ANSWERED = Finished(Result.SUCCESS, Status.ANSWERED, 13.0)
NO_ANSWER = Finished(Result.SUCCESS, Status.NO_ANSWER)
AGAIN = PollAgain(CallState.UNKNOWN)
BAD = BackOff(Outcome.BAD_RESPONSE)
ODD_RESULTS: tuple[object, ...] = (
    *(..., None, "", 2, -1, 0.5, 10**400),
    *("x", "yes", "truely", [], {}),
)
ODD_DURATIONS: tuple[object, ...] = (
    *(-1, 86_401, 10**30, 10**400),
    *("x", "nan", "inf", "1e999", "1_3", True, [], {}),
)


def test_the_documented_answers() -> None:
    answered = read_answer((EXAMPLES / "get-send-status.answered.json").read_bytes())
    assert verdict(call(), answered, NOW, POLICY) == ANSWERED
    refused = read_answer((EXAMPLES / "get-send-status.authorize-failed.json").read_bytes())
    assert verdict(call(), refused, NOW, POLICY) == Refused(Outcome.AUTH)
    assert (refused.code, refused.message) == ("101", "Authorize Failed")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # finished: SentResult, else CallStatus
        ({}, ANSWERED),
        ({"SentResult": "1", "SendStatus": "5", "CodeResponse": 100}, ANSWERED),
        ({"SentResult": 1.0, "SendStatus": " 5 "}, ANSWERED),
        ({"SentResult": 0}, Finished(Result.FAILURE, Status.ANSWERED, 13.0)),
        *(
            ({"SentResult": yes, "CallStatus": "NO ANSWER"}, NO_ANSWER)
            for yes in (True, "true", " TRUE ", "1.0")
        ),
        *(
            ({"SentResult": no}, Finished(Result.FAILURE, Status.ANSWERED, 13.0))
            for no in (False, "False", "false", "FALSE", 0.0)
        ),
        *(
            ({"SentResult": value}, replace(ANSWERED, odd=(OddField.SENT_RESULT,)))
            for value in ODD_RESULTS
        ),
        (
            {"SentResult": "x", "CallStatus": "BUSY", "CallDuration": -1},
            Finished(
                Result.FAILURE, Status.BUSY, odd=(OddField.SENT_RESULT, OddField.CALL_DURATION)
            ),
        ),
        (
            {"SentResult": ..., "CallStatus": ...},
            Finished(Result.FAILURE, Status.NONE, odd=(OddField.SENT_RESULT,)),
        ),
        # delivered, and nobody answered
        ({"CallStatus": "NO ANSWER"}, Finished(Result.SUCCESS, Status.NO_ANSWER)),
        ({"CallStatus": "NOANSWERED"}, Finished(Result.SUCCESS, Status.NO_ANSWER)),
        ({"CallStatus": "no_answer"}, Finished(Result.SUCCESS, Status.NO_ANSWER)),
        ({"CallStatus": " No-Answered "}, Finished(Result.SUCCESS, Status.NO_ANSWER)),
        ({"CallStatus": "answered"}, ANSWERED),
        ({"CallStatus": "FAILED"}, Finished(Result.SUCCESS, Status.FAILED)),
        ({"CallStatus": "CONGESTION"}, Finished(Result.SUCCESS, Status.OTHER)),
        ({"CallStatus": 7}, Finished(Result.SUCCESS, Status.OTHER)),
        ({"CallStatus": ["x"]}, Finished(Result.SUCCESS, Status.NONE)),
        ({"CallStatus": "", "SentResult": 0}, Finished(Result.FAILURE, Status.NONE)),
        ({"CallStatus": None, "SentResult": "0"}, Finished(Result.FAILURE, Status.NONE)),
        # durations
        ({"CallDuration": "13"}, ANSWERED),
        ({"CallDuration": 0}, Finished(Result.SUCCESS, Status.ANSWERED, 0.0)),
        ({"CallDuration": ...}, Finished(Result.SUCCESS, Status.ANSWERED)),
        ({"CallDuration": ""}, Finished(Result.SUCCESS, Status.ANSWERED)),
        ({"CallDuration": None}, Finished(Result.SUCCESS, Status.ANSWERED)),
        *(
            (
                {"CallDuration": odd},
                Finished(Result.SUCCESS, Status.ANSWERED, odd=(OddField.CALL_DURATION,)),
            )
            for odd in ODD_DURATIONS
        ),
        # keys
        ({"Ivr": "1"}, Finished(Result.SUCCESS, Status.ANSWERED, 13.0, Key.ONE)),
        ({"Ivr": 0}, Finished(Result.SUCCESS, Status.ANSWERED, 13.0, Key.ZERO)),
        ({"Ivr": " 42"}, Finished(Result.SUCCESS, Status.ANSWERED, 13.0, Key.FOUR)),
        ({"Ivr": "*1"}, Finished(Result.SUCCESS, Status.ANSWERED, 13.0, Key.STAR)),
        ({"Ivr": "#"}, Finished(Result.SUCCESS, Status.ANSWERED, 13.0, Key.HASH)),
        ({"Ivr": "a"}, Finished(Result.SUCCESS, Status.ANSWERED, 13.0, Key.OTHER)),
        ({"Ivr": "\u0661"}, Finished(Result.SUCCESS, Status.ANSWERED, 13.0, Key.OTHER)),
        ({"Ivr": None}, ANSWERED),
        # rejected
        ({"SendStatus": 4}, Finished(Result.FAILURE, Status.REJECTED)),
        ({"SendStatus": "4", "SentResult": 1}, Finished(Result.FAILURE, Status.REJECTED)),
        # not finished
        ({"SendStatus": 1}, PollAgain(CallState.AWAITING_APPROVAL)),
        ({"SendStatus": "2"}, PollAgain(CallState.QUEUED)),
        ({"SendStatus": 7}, PollAgain(CallState.AWAITING_REPORT)),
        *(
            ({"SendStatus": odd}, AGAIN)
            for odd in (..., None, 3, "finished", True, 5.5, "NaN", 1e300)
        ),
        # the id
        *(
            ({"ReferenceId": same}, ANSWERED)
            for same in (f" {ID.lower()} ", ID.replace("-", ""), f"{ID[:20]} {ID[20:]}", ..., "")
        ),
        ({"ReferenceId": "8eb2af6d"}, BAD),
        # codes
        ({"CodeResponse": ..., "CodeResult": "100"}, ANSWERED),
        ({"CodeResponse": "", "CodeResult": 100.0}, ANSWERED),
        ({"CodeResponse": ...}, BAD),
        ({"CodeResponse": []}, BAD),
        ({"CodeResponse": 10**4000}, BAD),
        ({"Unknown": {"a": [1]}}, ANSWERED),
        *(({"CodeResponse": code}, Refused(Outcome.AUTH)) for code in ("101", "140", "143", 101)),
        ({"CodeResponse": "160"}, Refused(Outcome.THROTTLED)),
        ({"CodeResponse": "105"}, PollAgain(CallState.NOT_FOUND)),
        ({"CodeResponse": "854"}, PollAgain(CallState.NOT_FOUND)),
        *(
            ({"CodeResponse": code}, BackOff(Outcome.API_ERROR))
            for code in ("99", "102", "103", "104", "106", "108", "118", "124", "851", "1", "x")
        ),
    ],
)
def test_what_an_answer_means(fields: dict[str, object], expected: object) -> None:
    assert verdict(call(), told(**fields), NOW, POLICY) == expected


@pytest.mark.parametrize(
    ("watched", "answer", "expected"),
    [
        # the grace begins with the first such answer, and an answer in between ends it
        (call(DAY), told(CodeResponse="105"), PollAgain(CallState.NOT_FOUND)),
        (
            call(DAY, CallState.NOT_FOUND, 599),
            told(CodeResponse="105"),
            PollAgain(CallState.NOT_FOUND),
        ),
        (
            call(DAY, CallState.NOT_FOUND, 600),
            told(CodeResponse="854"),
            Finished(Result.UNKNOWN, Status.NOT_FOUND),
        ),
        (
            call(DAY, CallState.QUEUED, 9_999),
            told(CodeResponse="105"),
            PollAgain(CallState.NOT_FOUND),
        ),
        (call(3 * DAY), told(CodeResponse="105"), EXPIRED),
        # given up
        (call(3 * DAY - 1), told(SendStatus=7), PollAgain(CallState.AWAITING_REPORT)),
        (call(3 * DAY), told(SendStatus=7), EXPIRED),
        (call(3 * DAY), told(CodeResponse="103"), EXPIRED),
        (call(30 * DAY), told(), ANSWERED),
        (call(30 * DAY), told(SendStatus=4), Finished(Result.FAILURE, Status.REJECTED)),
        # whatever the failure
        *((call(3 * DAY), Answer(outcome), EXPIRED) for outcome in set(Outcome) - {Outcome.OK}),
        (call(3 * DAY), told(CodeResponse="100", ReferenceId="another"), EXPIRED),
        (call(3 * DAY - 1), told(CodeResponse="101"), Refused(Outcome.AUTH)),
        (
            call(3 * DAY - 1),
            Answer(Outcome.THROTTLED, retry_after=7.0),
            Refused(Outcome.THROTTLED, 7.0),
        ),
        # a clock that was set back
        (call(-DAY), told(SendStatus=2), PollAgain(CallState.QUEUED)),
        *(
            (call(), Answer(outcome), BackOff(outcome))
            for outcome in (Outcome.TIMEOUT, Outcome.CONNECTION, Outcome.TLS, Outcome.HTTP_ERROR)
        ),
    ],
)
def test_what_age_changes(watched: WatchedCall, answer: Answer, expected: object) -> None:
    assert verdict(watched, answer, NOW, POLICY) == expected


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        (" 120 ", 120.0),
        ("9" * 400, 999_999_999_999.0),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("Mon, 24 Nov 2025 16:01:00 GMT", 60.0),
        ("Mon, 24 Nov 2025 15:00:00 GMT", 0.0),
        ("Mon, 99 Nov 2025 16:01:00 GMT", None),
        ("\u0661", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert read_retry_after(value, 1_764_000_000.0) == seconds


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"1",
        b'"100"',
        b"{",
        b"<html></html>",
        b"\xff\xfe",
        b"{}",
        b"\x00",
        b'{"CodeResponse":"100"',
        b"[" * 100_000,
        b'{"CodeResponse":NaN}',
    ],
)
def test_what_is_no_answer(body: bytes) -> None:
    assert verdict(call(), read_answer(body), NOW, POLICY) == BAD


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
VALUES = JSON | st.sampled_from(["100", 100, "5", 5, "4", 1, 0, "ANSWERED", "105", "101", ID, -1])
FIELDS = (
    "CodeResponse",
    "CodeResult",
    "ErrorMessage",
    "ReferenceId",
    "SendStatus",
    "SentResult",
    "CallStatus",
    "CallDuration",
    "Ivr",
)
DOCUMENTS = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, VALUES))
CALLS = st.builds(
    call,
    st.floats(-1e9, 1e9),
    st.sampled_from(CallState),
    st.floats(-1e9, 1e9),
)


def decide(watched: WatchedCall, answer: Answer) -> None:
    found = verdict(watched, answer, NOW, POLICY)
    if isinstance(found, Finished):
        assert (found.result, found.status) in ENDINGS
        assert found.duration is None or 0 <= found.duration <= DAY
    elif isinstance(found, BackOff):
        assert found.outcome in Outcome
    else:
        assert isinstance(found, PollAgain | Refused)
    assert found == verdict(watched, answer, NOW, POLICY)


@given(CALLS, DOCUMENTS | JSON)
def test_any_json_has_one_verdict(watched: WatchedCall, document: object) -> None:
    decide(watched, read_answer(json.dumps(document).encode()))


@given(CALLS, st.binary())
def test_any_bytes_have_one_verdict(watched: WatchedCall, body: bytes) -> None:
    decide(watched, read_answer(body))


@given(CALLS, st.integers(100, 999), st.none() | st.text(), st.none() | st.text())
def test_any_status_has_one_verdict(
    watched: WatchedCall, status: int, retry_after: str | None, date: str | None
) -> None:
    decide(watched, read_refusal(status, retry_after, NOW, date))


def test_every_code_of_the_documentation_has_a_class() -> None:
    assert len(CODES) == 16
    assert {code for code, outcome in CODES.items() if outcome is Outcome.AUTH} == {
        "101", "140", "143",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *((text, "is empty") for text in ("", "  ")),
        ("x" * 129, "is longer than 128"),
        *(
            (text, "contains a character that is not allowed in an id")
            for text in ("a b", "a\nb", "\u00e9", "a\x00", "-", "--", "#N/A", "<id>", "{ID}", "x+y")
        ),
        *(
            (text, "looks like a row of CSV")
            for text in (f"{ID},", f"{ID};otp", f"{ID}\totp", "a|b")
        ),
        *((text, "looks like a row of CSV") for text in (f'"{ID}",otp', "reference_id,campaign")),
        *((text, "looks quoted") for text in (f'"{ID}"', f"'{ID}", f"`{ID}`")),
        *((text, "looks like a formula") for text in (f'="{ID}"', "=A1", '="1",x')),
        *(
            (text, "looks like a number rounded by a spreadsheet")
            for text in ("1.23E+17", "1,23E+17", "1E+17", "1.23457e+17 ", "1.23E17", "12.0")
        ),
        *((text, "looks like a column name") for text in ("reference_id", "SMSID")),
        *((text, "looks like a null value") for text in ("null", "None", "NaN", "undefined")),
    ],
)
def test_what_is_no_id(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        reference_id(text)


@pytest.mark.parametrize(
    "text",
    [
        *(ID, "8eb2af6d-fb4c4814-b9cc-4c0e3ed32edf", "d8e0f1f0702544b2acb456ca9ccfd111250"),
        *(
            "dc712784-9c5f-4c69-b9a8-ea69d56adc9a87",
            "1",
            "12e45678",
            "9E17",
            "a_b.c:d/e~f",
            "1.2.3",
            "1.5x",
            "x" * 128,
        ),
    ],
)
def test_what_is_an_id(text: str) -> None:
    assert reference_id(f" {text}\n") == text


def test_ids_are_trimmed_and_compared_without_case_blanks_and_dashes() -> None:
    # The documented `SMSID` of a placed call: it lacks a dash, and ends in a blank.
    assert reference_id("8eb2af6d-fb4c4814-b9cc-4c0e3ed32edf ") == (
        "8eb2af6d-fb4c4814-b9cc-4c0e3ed32edf"
    )
    keys = {
        reference_key(text)
        for text in (
            "8eb2af6d-fb4c4814-b9cc-4c0e3ed32edf ",
            " 8EB2AF6D-FB4C-4814-B9CC-4C0E3ED32EDF",
            "8eb2af6dfb4c4814b9cc4c0e3ed32edf",
            "8eb2af6d fb4c 4814\tb9cc 4c0e3ed32edf",
        )
    }
    assert keys == {"8eb2af6dfb4c4814b9cc4c0e3ed32edf"}
