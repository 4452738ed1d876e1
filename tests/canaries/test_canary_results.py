from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest

from exporter.calls import Key, Result, Status
from exporter.canaries.runs import (
    after_finish,
    after_placing,
    day_of,
    request_id,
)
from exporter.esms.answers import Answer
from exporter.esms.codes import CODES, Outcome
from exporter.ids import reference_id
from exporter.ledger.canary_runs import CanaryResult, Run
from exporter.ledger.types import DELETED
from tests.canaries.test_canary_schedule import BERLIN, at

ID = reference_id("8eb2af6d-fb4c4814")
RUN = Run(1, "hourly", "main", "answered", None, 0.0, 60.0, 1.0, 1, ID, None, None, None, 9.0)


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (Answer(Outcome.OK, "100", reference_id="a"), None),
        *((Answer(o, c), CanaryResult.REFUSED) for c, o in CODES.items() if o is not Outcome.OK),
        (Answer(Outcome.API_ERROR, "other"), CanaryResult.REFUSED),
        (Answer(Outcome.BAD_RESPONSE, "100"), CanaryResult.UNSURE),
        (Answer(Outcome.BAD_RESPONSE), CanaryResult.UNSURE),
        (Answer(Outcome.TIMEOUT), CanaryResult.UNSURE),
        (Answer(Outcome.CONNECTION), CanaryResult.UNSURE),
        (Answer(Outcome.HTTP_ERROR), CanaryResult.UNSURE),
        (Answer(Outcome.THROTTLED), CanaryResult.UNSURE),
    ],
)
def test_after_placing(answer: Answer, result: CanaryResult | None) -> None:
    assert after_placing(answer) is result


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.CONNECTION, Outcome.TLS])
def test_what_was_never_sent_was_not_placed(outcome: Outcome) -> None:
    assert after_placing(Answer(outcome, sent=False)) is CanaryResult.UNREACHABLE


@pytest.mark.parametrize(
    ("expect", "key", "status", "pressed", "good"),
    [
        ("answered", None, Status.ANSWERED, None, True),
        ("answered", None, Status.ANSWERED, Key.ONE, True),
        ("answered", None, Status.NO_ANSWER, None, False),
        ("answered", None, Status.REJECTED, None, False),
        ("answered", "1", Status.ANSWERED, Key.ONE, True),
        ("answered", "1", Status.ANSWERED, Key.TWO, False),
        ("answered", "star", Status.ANSWERED, Key.STAR, True),
        ("answered", "1", Status.ANSWERED, None, False),
        ("finished", None, Status.NO_ANSWER, None, True),
        ("finished", None, Status.REJECTED, None, False),
    ],
)
def test_after_finish(
    expect: str,
    key: str | None,
    status: Status,
    pressed: Key | None,
    good: bool,  # noqa: FBT001 - a table
) -> None:
    wanted = CanaryResult.SUCCESS if good else CanaryResult.FAILURE
    for result in (Result.SUCCESS, Result.FAILURE):
        run = RUN._replace(
            expect=expect,
            expect_key=key,
            call_result=result.value,
            call_status=status.value,
            call_key=pressed and pressed.value,
        )
        assert after_finish(run) is wanted


@pytest.mark.parametrize(
    ("result", "wanted"), [(None, None), (DELETED, None), ("unknown", CanaryResult.LATE)]
)
def test_a_call_that_did_not_finish(result: str | None, wanted: CanaryResult | None) -> None:
    run = RUN._replace(call_result=result, call_status="not_found", expect="finished")
    assert after_finish(run) is wanted


def test_the_id_of_a_request_is_that_of_the_call_alone() -> None:
    known = request_id("hourly", 3600, "main")
    assert known == request_id("hourly", 3600, "main")
    others = (("daily", 3600, "main"), ("hourly", 7200, "main"), ("hourly", 3600, "other"))
    assert len({known, *(request_id(*other) for other in others)}) == 4


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)]
)
def test_a_day_is_one_of_the_calendar(day: str, hours: int) -> None:
    start, end = day_of(at(f"{day}T12:00:00"), BERLIN)
    assert start == at(f"{day}T00:00:00", BERLIN)
    assert end - start == hours * 3600


def test_a_day_whose_midnight_comes_twice_begins_with_the_first() -> None:
    havana = ZoneInfo("America/Havana")
    midnight = at("2026-11-01T04:00:00")
    for minutes in (0, 59, 60, 119, 120, 24 * 60 + 59):
        assert day_of(midnight + minutes * 60, havana) == (midnight, midnight + 25 * 3600)
