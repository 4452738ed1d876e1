from __future__ import annotations

from pathlib import Path

import pytest

from exporter.errors import ConfigError
from exporter.sources.call_files import read_calls

OTP = {"campaign": "otp"}


def read(
    folder: Path, name: str, text: str, *, whole: bool = True
) -> tuple[list[tuple[str, str, dict[str, str]]], list[str]]:
    path = folder / name
    path.write_bytes(text.encode())
    calls, problems = read_calls(str(path), ["main", "b"], ["campaign"], whole=whole)
    return (
        [(call.account, call.reference_id, dict(call.labels)) for call in calls],
        [str(problem).removeprefix(str(folder) + "/") for problem in problems],
    )


@pytest.mark.parametrize(
    ("name", "text", "calls"),
    [
        (
            "a.yaml",
            "- {reference_id: X, account: main, labels: {campaign: otp}}",
            [("main", "X", OTP)],
        ),
        ("a.yml", "- reference_id: X\n  account: b\n", [("b", "X", {})]),
        ("a.yaml", "# none yet\n", []),
        ("a.yaml", "[]", []),
        ("a.json", '[{"reference_id": "X", "account": "b"}]', [("b", "X", {})]),
        ("a.csv", "reference_id,account,campaign\nX,main,otp\n", [("main", "X", OTP)]),
        ("a.csv", "\ufeffaccount,reference_id\r\nb, X \r\n\r\n", [("b", "X", {})]),
        ("a.csv", 'account,reference_id,campaign\nmain,"X",\n', [("main", "X", {})]),
        ("a.csv", "", []),
        ("a.csv", "reference_id\n", []),
        # The same call twice is no problem: programs that append repeat themselves.
        ("a.csv", "reference_id,account\nX,b\nX,b\n", [("b", "X", {}), ("b", "X", {})]),
        # What programs write does not read the exporter's environment.
        (
            "a.yaml",
            "- {reference_id: '${HOME}', account: main}",
            [("main", "${HOME}", {})],
        ),
    ],
)
def test_a_file_of_each_kind(
    tmp_path: Path, name: str, text: str, calls: list[tuple[str, str, dict[str, str]]]
) -> None:
    assert read(tmp_path, name, text) == (calls, [])


def test_a_list_of_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("# ids\r\n\r\nX\r\n  Y  # the second\r\nZ")
    calls, problems = read_calls(str(path), ["main"], [])
    assert ([call.reference_id for call in calls], problems) == (["X", "Y", "Z"], ())
    # While it is written, its last line may be half an id.
    calls, _ = read_calls(str(path), ["main"], [], whole=False)
    assert [call.reference_id for call in calls] == ["X", "Y"]


@pytest.mark.parametrize(
    ("name", "text", "good", "problems"),
    [
        (
            "a.yaml",
            (
                "- {reference_id: X, account: main}\n- {reference_id: Y, account: nobody}\n"
                "- {reference_id: Z, account: main, labels: {team: x}}\n- 5\n"
            ),
            1,
            [
                "a.yaml:2: [1].account: expected the name of one of the accounts",
                "a.yaml:3: [2].labels.team: expected one of the names in `watch.labels`",
                "a.yaml:4: [3]: expected text; an id that looks like a number needs quotes",
                (
                    "a.yaml:4: [3].account: missing required key; it may be left out where there is"
                    " one account"
                ),
            ],
        ),
        (
            "a.csv",
            "reference_id,account\nX,main\nbad id,main\n,main\nY,main,extra\n",
            1,
            [
                (
                    "a.csv:3: [1].reference_id: expected an id of 1 to 128 printable ASCII"
                    " characters without blanks"
                ),
                "a.csv:4: [2].reference_id: missing required key",
                "a.csv:5: [3].labels.?: expected one of the names in `watch.labels`",
            ],
        ),
    ],
)
def test_what_is_wrong_does_not_stop_the_others(
    tmp_path: Path, name: str, text: str, good: int, problems: list[str]
) -> None:
    calls, told = read(tmp_path, name, text)
    assert (len(calls), told) == (good, problems)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.yaml", "calls: []", "a.yaml:1: expected a list of calls, as in `watch.calls`"),
        ("a.json", '[{"a": 1', "a.json:2: [0]: is not valid YAML"),
        ("a.csv", "id,account\n", "a.csv:1: expected a column `reference_id`, and each name once"),
        ("a.csv", "reference_id,reference_id\n", "a.csv:1: expected a column `reference_id`"),
        ("a.csv", "reference_id,phone\n", "a.csv:1: expected no columns but `reference_id`,"),
        ("a.csv", 'reference_id\n"x\n', "a.csv:2: is not valid CSV"),
        ("a.csv", "reference_id\n" + "x" * 200_000, "a.csv:2: is not valid CSV: field larger"),
        ("a.txt", "\udcff", "a.txt: is not UTF-8 text"),
    ],
)
def test_what_cannot_be_read_at_all(tmp_path: Path, name: str, text: str, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as error:
        read_calls(str(path), ["main"], [])
    assert str(error.value).removeprefix(f"{tmp_path}/").startswith(expected)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_calls(str(tmp_path / "a.txt"), ["main"], [])
