from __future__ import annotations

from datetime import UTC, datetime

import pytest

from exporter.calls import MAX_CALL_DURATION, CallState, Key, Result, Status
from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.ids import reference_id
from exporter.lookup.line import line_of

ID = reference_id("Call-1")
NOW = 1_700_000_000.5


def ended(**fields: object) -> Answer:
    told: dict[str, object] = {"code": "100", "reference_id": ID, "send_status": 5, **fields}
    return Answer(Outcome.OK, **told)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "word", "status", "duration", "key"),
    [
        (
            ended(sent_result=1, call_status="ANSWERED", duration=7.0, ivr="#"),
            *("success", Status.ANSWERED, 7.0, Key.HASH),
        ),
        (ended(sent_result=0, call_status="busy"), "failure", Status.BUSY, None, None),
        (
            ended(call_status="ANSWERED", duration=MAX_CALL_DURATION + 1),
            *("success", Status.ANSWERED, None, None),
        ),
        (ended(send_status=4), "failure", Status.REJECTED, None, None),
    ],
)
def test_finished(
    answer: Answer, word: str, status: Status, duration: float | None, key: Key | None
) -> None:
    line = line_of("main", ID, answer, NOW)
    assert (line.state, line.word, line.result) == ("finished", word, Result(word))
    assert (line.status, line.duration, line.key) == (status, duration, key)
    assert (line.account, line.reference_id, line.code) == ("main", ID, "100")
    assert line.asked_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert line.answered
    assert line.name == ("main", "call1")


@pytest.mark.parametrize(
    ("answer", "word", "outcome", "answered"),
    [
        (ended(send_status=1), CallState.AWAITING_APPROVAL, Outcome.OK, True),
        (ended(send_status=2), CallState.QUEUED, Outcome.OK, True),
        (ended(send_status=7), CallState.AWAITING_REPORT, Outcome.OK, True),
        (ended(send_status=None), CallState.UNKNOWN, Outcome.OK, True),
        (Answer(Outcome.NOT_FOUND, "105"), CallState.NOT_FOUND, Outcome.NOT_FOUND, True),
        (ended(reference_id="another"), "bad_response", Outcome.BAD_RESPONSE, False),
        *(
            (Answer(outcome), outcome.value, outcome, False)
            for outcome in Outcome
            if outcome not in (Outcome.OK, Outcome.NOT_FOUND)
        ),
    ],
)
def test_not_finished(answer: Answer, word: str, outcome: Outcome, answered: bool) -> None:  # noqa: FBT001
    line = line_of("main", ID, answer, NOW)
    assert (line.word, line.outcome, line.answered) == (word, outcome, answered)
    assert line.state == (word if answered else None)
    assert (line.result, line.status, line.duration, line.key) == (None, None, None, None)


def test_the_providers_words_come_first() -> None:
    for message, shown in (
        ("busy", "busy"),
        ("", "the provider asks for fewer requests"),
    ):
        answer = Answer(Outcome.THROTTLED, message=message)
        assert line_of("main", ID, answer, NOW).message == shown
