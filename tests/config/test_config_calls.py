from __future__ import annotations

import pytest

from exporter.config import CallConfig
from exporter.ids import ReferenceId
from tests.config.loading import FindProblems, Load

ONE = "accounts:\n  - {name: main, api_key: k, secret_key: s}\n"
TWO = ONE + "  - {name: other, api_key: k, secret_key: s}\n"
WATCH = "watch:\n  labels: [campaign, team]\n  calls:\n"


@pytest.mark.parametrize(
    ("text", "reference_id", "account", "labels"),
    [
        ("abc", "abc", "main", {}),
        ("' abc '", "abc", "main", {}),
        ("'123'", "123", "main", {}),
        ("1e", "1e", "main", {}),
        ("no", "no", "main", {}),
        ("'" + "x" * 128 + "'", "x" * 128, "main", {}),
        ("{reference_id: abc}", "abc", "main", {}),
        ("{reference_id: abc, account: main, labels: }", "abc", "main", {}),
        ("{reference_id: abc, labels: {team: on}}", "abc", "main", {"team": "on"}),
        ("{reference_id: abc, labels: {team: ''}}", "abc", "main", {"team": ""}),
        ("${ID}", "4711", "main", {}),
        ('{reference_id: "${ID}", labels: {team: "${ID}"}}', "4711", "main", {"team": "4711"}),
    ],
)
def test_calls_are_read(
    load: Load, text: str, reference_id: str, account: str, labels: dict[str, str]
) -> None:
    config = load(f"{ONE}{WATCH}    - {text}\n", {"ID": "4711"})
    assert config.watch.calls == (CallConfig(ReferenceId(reference_id), account, labels),)
    assert type(config.watch.calls[0].reference_id) is str


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("123", ": expected text; an id that looks like a number needs quotes"),
        ("true", ": expected text; an id that looks like a number needs quotes"),
        ("", ": expected an id, or a mapping with the key `reference_id`"),
        ("[]", ": expected an id, or a mapping with the key `reference_id`"),
        ("{}", ".reference_id: missing required key"),
        ("{reference_id: }", ".reference_id: expected an id"),
        ("{reference_id: 1.5}", ".reference_id: expected text; an id that looks like a number"),
        ("''", ": expected an id; the text is empty"),
        ("a b", ": expected an id; the text "),
        ('"a\\nb"', ": expected an id; the text "),
        ("\u00e9", ": expected an id; the text "),
        ("x" * 129, ": expected an id; the text "),
        ("{reference_id: a, account: nope}", ".account: expected the name of one of the accounts"),
        ("{reference_id: a, account: 1}", ".account: expected the name of one of the accounts"),
        ("{reference_id: a, acount: main}", ".acount: unknown key; did you mean `account`?"),
        ("{reference_id: a, zz: main}", ".zz: unknown key"),
        ("{reference_id: a, labels: x}", ".labels: expected a mapping of keys to values"),
        ("{reference_id: a, labels: {x: y}}", ".labels.x: expected one of the names in"),
        ("{reference_id: a, labels: {team: 1}}", ".labels.team: expected text; write it in quotes"),
        ("{reference_id: a, labels: {team: }}", ".labels.team: expected text; write it in quotes"),
        ('{reference_id: a, labels: {team: "\\n"}}', ".labels.team: expected at most 128"),
        ("{reference_id: a, labels: {team: " + "x" * 129 + "}}", ".labels.team: expected at most"),
        ('{reference_id: "${NONE}"}', ".reference_id: the environment variable"),
        ("${NONE}", ": the environment variable `NONE` is not set"),
        ('{reference_id: a, account: "${NONE}"}', ".account: the environment variable"),
        ('{reference_id: a, labels: "${NONE}"}', ".labels: the environment variable"),
        ('{reference_id: a, labels: {team: "${NONE}"}}', ".labels.team: the environment variable"),
    ],
)
def test_every_problem_of_a_call_is_reported_once(
    problems: FindProblems, text: str, expected: str
) -> None:
    (found,) = problems(f"{ONE}{WATCH}    - first\n    - {text}\n")
    assert expected in found
    assert found.startswith("7: ")


def test_the_lines_are_those_of_the_keys(problems: FindProblems) -> None:
    call = (
        "    - reference_id: 1\n      account: nope\n      labels:\n        team: 2\n        x: y\n"
    )
    lines = [problem.split(": ")[0] for problem in problems(ONE + WATCH + call)]
    assert lines == ["6", "7", "9", "10"]


def test_an_account_is_needed_where_there_are_several(problems: FindProblems, load: Load) -> None:
    message = "missing required key; it is optional only if there is one account"
    assert problems(f"{TWO}{WATCH}    - abc\n    - reference_id: b\n") == [
        f"7: watch.calls[0].account: {message}",
        f"8: watch.calls[1].account: {message}",
    ]
    config = load(f"{TWO}{WATCH}    - {{reference_id: abc, account: other}}\n")
    assert config.watch.calls[0].account == "other"


def test_the_same_call_twice_names_the_first(problems: FindProblems, load: Load) -> None:
    calls = "    - abc\n    - ABC\n    - reference_id: ABC\n    - {reference_id: aBc}\n"
    assert problems(ONE + WATCH + calls) == [
        "7: watch.calls[1]: duplicate call; the first is on line 6",
        "8: watch.calls[2].reference_id: duplicate call; the first is on line 6",
        "9: watch.calls[3].reference_id: duplicate call; the first is on line 6",
    ]
    of_two = "".join(f"    - {{reference_id: a, account: {name}}}\n" for name in ("main", "other"))
    assert len(load(TWO + WATCH + of_two).watch.calls) == 2


def test_equal_labels_are_one_object(load: Load) -> None:
    calls = "".join(f"    - {{reference_id: a{i}, labels: {{team: x}}}}\n" for i in range(2))
    first, second = load(ONE + WATCH + calls).watch.calls
    assert first.labels is second.labels
    with pytest.raises(TypeError):
        first.labels["team"] = "y"  # type: ignore[index]


@pytest.mark.parametrize("accounts", ["", "accounts: x\n", "accounts: [x]\n"])
def test_calls_are_not_blamed_for_accounts_that_cannot_be_read(
    problems: FindProblems, accounts: str
) -> None:
    found = problems(f"{accounts}{WATCH}    - {{reference_id: a, account: main}}\n    - b c\n")
    assert not any("watch.calls[0]" in problem for problem in found)
    assert any("watch.calls[1]: expected an id" in problem for problem in found)


def test_labels_are_not_checked_against_names_that_cannot_be_read(problems: FindProblems) -> None:
    text = f"{ONE}watch:\n  labels: [1]\n  calls: [{{reference_id: a, labels: {{b: c}}}}]\n"
    assert len(problems(text)) == 1


def test_only_the_first_hundred_are_shown(problems: FindProblems) -> None:
    found = problems(f"{ONE}{WATCH}" + "    - a b\n" * 1000)
    assert len(found) == 101
    assert found[0].startswith("6: watch.calls[0]: ")
    assert found[99].startswith("105: watch.calls[99]: ")
    assert found[100].endswith("and 900 more problems")
    unknown = "".join(f"      k{i}: 1\n" for i in range(150))
    assert len(problems(f"{ONE}{WATCH}    - reference_id: a\n{unknown}")) == 101


def test_no_more_calls_than_may_be_watched(problems: FindProblems) -> None:
    text = f"{ONE}watch:\n  max_calls: 1\n  calls: [a, b]\n"
    assert problems(text) == ["5: watch.calls: expected at most `max_calls`, 1, of account main"]
