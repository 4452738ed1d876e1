"""Results of look-ups, and the files that they are written to."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from exporter.calls import MAX_CALL_DURATION, CallState, Key, Result, Status
from exporter.cli.lookup import results_file
from exporter.errors import ExporterError
from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.ids import Kind, ReferenceId, reference_id, reference_key
from exporter.lookup import COLUMNS, CallName, LookupResult, result_of

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
    found = result_of("main", ID, answer, NOW)
    assert (found.state, found.summary, found.result) == ("finished", word, Result(word))
    assert (found.status, found.duration, found.key) == (status, duration, key)
    assert (found.account, found.reference_id, found.code) == ("main", ID, "100")
    assert found.asked_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert found.answered
    assert found.name == ("main", Kind.CALL, "call1")


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
    found = result_of("main", ID, answer, NOW)
    assert (found.summary, found.outcome, found.answered) == (word, outcome, answered)
    assert found.state == (word if answered else None)
    assert (found.result, found.status, found.duration, found.key) == (None, None, None, None)


@pytest.mark.parametrize(
    ("answer", "word", "delivered", "failed", "price"),
    [
        (ended(delivered=3, failed=0, price=1410.0), "success", 3, 0, 1410.0),
        (ended(delivered=2, failed=1), "failure", 2, 1, None),
        (ended(send_status=4, receivers=3), "failure", 0, 3, None),
        (ended(send_status=7, delivered=0, price=470.0), CallState.AWAITING_REPORT, *[None] * 3),
    ],
)
def test_messages(
    answer: Answer, word: str, delivered: int | None, failed: int | None, price: float | None
) -> None:
    found = result_of("main", ID, answer, NOW, Kind.MESSAGE)
    assert (found.summary, found.delivered, found.failed) == (word, delivered, failed)
    assert (found.price, found.duration, found.key, found.message) == (price, None, None, "")
    assert found.name == ("main", Kind.MESSAGE, "call1")
    # The two kinds are different questions, also where the id is the same.
    assert result_of("main", ID, answer, NOW).name != found.name


def test_guessed_results_say_so() -> None:
    found = result_of("main", ID, ended(call_status="BUSY"), NOW)
    assert found.message.startswith("no SentResult")
    found = result_of("main", ID, ended(), NOW, Kind.MESSAGE)
    assert (found.summary, found.failed) == ("failure", 1)
    assert found.message.startswith("no SendSuccess")


def test_the_providers_words_come_first() -> None:
    for message, shown in (
        ("busy", "busy"),
        ("", "the provider throttles requests"),
    ):
        answer = Answer(Outcome.THROTTLED, message=message)
        assert result_of("main", ID, answer, NOW).message == shown


# Files.

HEADER = ",".join(COLUMNS) + "\n"
GOOD = result_of("main", reference_id("a"), Answer(Outcome.NOT_FOUND, "105", 'say "no", x'), 1e9)
BAD = result_of("main", reference_id("b"), Answer(Outcome.TIMEOUT), 1e9)


def names(*ids: str) -> set[CallName]:
    return {("main", Kind.CALL, reference_key(name)) for name in ids}


def written(path: Path, *results: LookupResult) -> bytes:
    with results_file(path) as file:
        file.write(results)
    return path.read_bytes()


def answered(path: Path) -> set[CallName]:
    with results_file(path) as file:
        return file.answered


@pytest.mark.parametrize("ending", ["csv", "json"])
@pytest.mark.parametrize("cut", [0, 1, 40, 10_000])
def test_what_is_there_is_kept_and_the_rest_cut_off(tmp_path: Path, ending: str, cut: int) -> None:
    path = tmp_path / f"results.{ending}"
    whole = written(path, GOOD)
    both = written(path, replace(GOOD, reference_id=reference_id("c")))
    path.write_bytes(both[: max(0, len(both) - cut)])
    path.chmod(0o640)
    assert answered(path) == names(*{0: "ac", 1: "a", 40: "a", 10_000: ""}[cut])
    header = HEADER.encode() if ending == "csv" else b""
    assert path.read_bytes() == {0: both, 10_000: header}.get(cut, whole)
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == [path.name]  # noqa: PTH208


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_ids_that_look_like_formulas_are_known_again(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"results.{ending}"
    odd = ("=1+1", "'=1+1", "-5", "@a", "'a")
    before = written(path, *(replace(GOOD, reference_id=ReferenceId(name)) for name in odd))
    assert answered(path) == names(*odd)
    assert path.read_bytes() == before
    if ending == "csv":
        assert [line.split(b",")[0] for line in before.splitlines()[1:]] == [
            b"'=1+1", b"''=1+1", b"'-5", b"'@a", b"'a",
        ]  # fmt: skip


def test_json_of_versions_without_messages_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"reference_id":"a","account":"main","outcome":"ok"}\n')
    message = replace(GOOD, reference_id=reference_id("m"), kind=Kind.MESSAGE)
    written(path, message)
    assert answered(path) == {*names("a"), message.name}


def test_the_last_line_of_a_call_counts(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    written(path, BAD, GOOD)
    assert answered(path) == names("a")
    written(path, replace(GOOD, reference_id=BAD.reference_id))
    assert answered(path) == names("a", "b")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "x.csv",
            HEADER.replace(",kind", ""),
            "is not a results file of this version; use another",
        ),
        ("x.csv", "hello", "is not a results file"),
        ("x.csv", HEADER + "a,main\n", "line 2 is invalid"),
        ("x.csv", HEADER + "a,main,odd" + "," * 9 + "ok" + "," * 3 + "\n", "line 2 is invalid"),
        ("x.csv", HEADER + "a,main,call" + "," * 9 + "odd" + "," * 3 + "\n", "line 2 is invalid"),
        ("x.csv", HEADER + '"\n', "line 2 is invalid"),
        ("x.csv", HEADER + "\udcff\n", "line 2 is invalid"),
        ("x.json", "[]\n", "is not a results file"),
        ("x.json", '{"reference_id":"a","account":"m","outcome":"ok"}\n1\n', "line 2 is invalid"),
        ("x.json", '{"reference_id":1,"account":"a","outcome":"ok"}\n', "line 1 is invalid"),
        ("x.json", "hello", "is not a results file"),
    ],
)
def test_what_is_no_file_of_results_is_left_alone(
    tmp_path: Path, name: str, content: str, reason: str
) -> None:
    path = tmp_path / name
    before = content.encode(errors="surrogateescape")
    path.write_bytes(before)
    with pytest.raises(ExporterError, match=reason), results_file(path):
        pass
    assert path.read_bytes() == before


def test_what_is_no_file_at_all(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for name, reason in (
        ("folder.csv", "Is a directory"),
        ("pipe.csv", "Illegal seek"),
        ("missing/x.csv", "No such file"),
    ):
        with pytest.raises(ExporterError, match=reason), results_file(tmp_path / name):
            pass


def test_a_full_disk_is_an_error_and_leaves_nothing_for_long(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    whole = written(path, GOOD)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for a part of a line.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, hard))
    try:
        with pytest.raises(ExporterError, match="File too large"):
            written(path, BAD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert answered(path) == names("a")
    assert path.read_bytes() == whole
