from __future__ import annotations

import gc
import json
import os
import stat
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from exporter.config.document import Problems
from exporter.config.validation import LoadContext
from exporter.config.watch import CallConfig, validate_calls
from exporter.errors import ConfigError, Problem
from exporter.sources.tabular import MAX_FILE, read_calls

OTP = {"campaign": "otp"}
NO_ID = (
    "expected an id; the text contains a character that is not allowed in an id, or at its start"
)
NO_LABEL = "expected at most 128 characters, and no control characters"


def read_all(
    path: Path, *labels: str, accounts: tuple[str, ...] = ("main",), whole: bool = True
) -> tuple[list[CallConfig], tuple[Problem, ...]]:
    problems = Problems(str(path))
    calls = list(read_calls(str(path), accounts, labels, problems, whole=whole))
    return calls, problems.listed()


def read(
    folder: Path, name: str, text: str, *, whole: bool = True
) -> tuple[list[tuple[str, str, dict[str, str]]], list[str]]:
    path = folder / name
    path.write_bytes(text.encode())
    calls, problems = read_all(path, "campaign", accounts=("main", "b"), whole=whole)
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
        (
            "a.json",
            '[{"reference_id": "X", "account": "b",\t"labels"\n: {"campaign": "\\ud83d\\udcde"}}]',
            [("b", "X", {"campaign": "\N{TELEPHONE RECEIVER}"})],
        ),
        ("a.json", "\ufeff[ ]", []),
        ("a.json", " \n", []),
        ("a.csv", "reference_id;account;campaign\nX;b;a,b\n", [("b", "X", {"campaign": "a,b"})]),
        ("a.csv", "account\treference_id\nb\tX\n", [("b", "X", {})]),
        ("a.csv", '"account"|"reference_id"\nb|X\n', [("b", "X", {})]),
        ("a.csv", "sep=,\r\nreference_id,account,,\r\nX,b,,\r\n", [("b", "X", {})]),
        ("a.csv", "SEP=:\nreference_id:account\nX:b\n", [("b", "X", {})]),
        ("a.csv", 'account;reference_id\nb;"X"\n', [("b", "X", {})]),
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
            "- {reference_id: X, account: main, labels: {campaign: '${HOME}'}}",
            [("main", "X", {"campaign": "${HOME}"})],
        ),
    ],
)
def test_a_file_of_each_kind(
    tmp_path: Path, name: str, text: str, calls: list[tuple[str, str, dict[str, str]]]
) -> None:
    assert read(tmp_path, name, text) == (calls, [])


def test_a_list_of_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("# ids\r\n\r\nX\r\n  Y  # the second\r\n'X'\r\nX,\r\nZ")
    calls, problems = read_all(path)
    assert [call.reference_id for call in calls] == ["X", "Y", "Z"]
    assert [(problem.line, problem.message.partition("the text ")[2]) for problem in problems] == [
        (5, "looks quoted; write the id alone"),
        (6, "looks like a row of CSV"),
    ]
    # While it is written, its last line may be half an id.
    calls, _ = read_all(path, whole=False)
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
            ],
        ),
        (
            "a.csv",
            "reference_id,account\nX,main\nbad id,main\n,main\nY,main,extra\n",
            1,
            [
                f"a.csv:3: [1].reference_id: {NO_ID}",
                "a.csv:4: [2].reference_id: missing required key",
                "a.csv:5: [3].labels.?: expected one of the names in `watch.labels`",
            ],
        ),
        (
            "a.json",
            (
                '[{"reference_id": "a\\u0000b", "account": "b"},\n'
                '{"reference_id": "Y", "account": "b", "labels": {"campaign": "a\\u0000b"}}]'
            ),
            0,
            [f"a.json:1: [0].reference_id: {NO_ID}", f"a.json:2: [1].labels.campaign: {NO_LABEL}"],
        ),
        (
            "a.csv",
            "reference_id,account,campaign\na\1b,b,\nX,b,a\1b\n",
            0,
            [f"a.csv:2: [0].reference_id: {NO_ID}", f"a.csv:3: [1].labels.campaign: {NO_LABEL}"],
        ),
    ],
)
def test_what_is_wrong_does_not_stop_the_others(
    tmp_path: Path, name: str, text: str, good: int, problems: list[str]
) -> None:
    calls, told = read(tmp_path, name, text)
    assert (len(calls), told) == (good, problems)


def test_problems_of_json_have_the_lines_of_their_items(tmp_path: Path) -> None:
    document = [
        {"reference_id": "X", "account": "b", "labels": {"campaign": "account", "team": "x"}},
        {"account": "nobody", "reference_id": 5},
    ]
    text = json.dumps(document, indent=1).replace('"account": "b"', '"account": "b", "account": 1')
    text = text.replace(": 5", f": {'5' * 5000}")
    calls, problems = read(tmp_path, "a.json", text)
    assert calls == []
    assert [problem.split(": ")[:2] for problem in problems] == [
        ["a.json:2", "[0].account"],
        ["a.json:2", "[0].labels.team"],
        ["a.json:10", "[1].reference_id"],
        ["a.json:10", "[1].account"],
    ]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_what_excel_calls_unicode_text(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.csv"
    text = "\ufeffreference_id\tcampaign\r\nX\tnh\u1eafc l\u1ecbch\r\n"
    path.write_bytes(text.encode(encoding))
    ((call,), problems) = read_all(path, "campaign")
    assert (call.reference_id, dict(call.labels), problems) == (
        "X", {"campaign": "nh\u1eafc l\u1ecbch"}, ()
    )  # fmt: skip
    path.write_bytes(text.encode(encoding)[:-1])
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        read_all(path, "campaign")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.yaml", "calls: []", "a.yaml:1: expected a list of calls, as in `watch.calls`"),
        ("a.json", '[{"a": 1', "a.json:1: [0]: is not valid JSON: Expecting ',' delimiter"),
        ("a.json", '["X",\n "Y', "a.json:2: [1]: is not valid JSON: Unterminated string"),
        ("a.json", '["X",\n]', "a.json:2: [1]: is not valid JSON: Expecting value"),
        ("a.json", '["X",\n\n"Y" "Z"]', "a.json:3: [2]: expected `,` or `]`"),
        ("a.json", '["X"]\n["Y"]', "a.json:2: [1]: expected nothing after the list"),
        ("a.json", '["X", # one\n"Y"]', "a.json:1: [1]: is not valid JSON: Expecting value"),
        ("a.json", "[" * 100_000, "a.json:1: [0]: is nested too deeply"),
        ("a.json", f'["{"x" * (1 << 21)}"]', "a.json:1: [0]: is longer than 65536 characters"),
        ("a.json", f'[{{"a" 1}},{"0," * (1 << 20)}]', "a.json:1: [0]: is not valid JSON"),
        ("a.json", '{"calls": []}', "a.json:1: expected a list of calls, as in `watch.calls`"),
        (
            *("a.csv", "reference_id:account\n"),
            "a.csv:1: expected a column `reference_id`, and no duplicate columns; the delimiter",
        ),
        ("a.csv", "id,account\n", "a.csv:1: expected a column `reference_id`, and no"),
        ("a.csv", "reference_id,reference_id\n", "a.csv:1: expected a column `reference_id`"),
        ("a.csv", "reference_id,phone\n", "a.csv:1: expected only the columns `reference_id`,"),
        ("a.csv", 'reference_id\n"x\n', "a.csv:2: is not valid CSV"),
        ("a.csv", "reference_id\n" + "x" * 200_000, "a.csv:2: is not valid CSV: field larger"),
        ("a.txt", "\udcff", "a.txt: is not UTF-8 text"),
        # What no call needs is not held.
        ("a.txt", "# x\n" + "x" * (1 << 20) + "x", "a.txt:2: is longer than 1048576 characters"),
        ("a.csv", "reference_id\n" + ",\n" * 9 + "," * (1 << 21), "a.csv:11: is longer than"),
        ("a.csv", "reference_id\n" + '"\n",' * 400_000, "a.csv:262146: is longer than"),
        ("a.yaml", "- x\n- [" + "a," * 101 + "]", "a.yaml:2: [1][99]: has more than 100 values"),
        (
            "a.json",
            '["x", {' + ",".join(f'"k{n}":1' for n in range(200)) + "}]",
            "a.json:1: [1]: has more",
        ),
        ("a.yaml", "".join(f"- &a{n} x\n" for n in range(1001)), "a.yaml:1001: [1000]: has"),
        ("a.yaml", "{a: [1", "a.yaml:1: expected a list of calls"),
        ("a.json", '"x"', "a.json:1: expected a list of calls"),
    ],
)
def test_what_cannot_be_read_at_all(tmp_path: Path, name: str, text: str, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as error:
        read_all(path)
    assert str(error.value).removeprefix(f"{tmp_path}/").startswith(expected)


def unique(count: int) -> Iterator[str]:
    return (f"{number:036d}" for number in range(count))


KINDS: dict[str, Callable[[int], str]] = {
    "ids.txt": lambda count: "".join(f"{name}\n" for name in unique(count)),
    "comments.txt": lambda count: "\n# nothing\n" * count,
    "bad.txt": lambda count: "b a d\n" * count,
    "labels.csv": lambda count: (
        "reference_id,campaign\n" + "".join(f"{name},c{name}\n" for name in unique(count))
    ),
    "bad.csv": lambda count: "reference_id\n" + "x,y,z\n" * count,
    "labels.json": lambda count: (
        "["
        + ",".join(
            f'{{"reference_id":"{name}","labels":{{"campaign":"c{name}"}}}}'
            for name in unique(count)
        )
        + "]"
    ),
    "bad.yaml": lambda count: "".join(f"- {{k{name}: [x, y]}}\n" for name in unique(count)),
    "aliases.yaml": lambda count: (
        "- &a {reference_id: a, labels: &l {campaign: otp}}\n"
        + "- *a\n- {reference_id: b, labels: *l}\n" * count
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_is_read_as_a_stream(tmp_path: Path, name: str) -> None:
    def peak(count: int) -> int:
        """Return the most bytes that were held while the calls of a file were read and dropped."""
        path = tmp_path / name
        path.write_text(KINDS[name](count))
        problems = Problems(str(path))
        gc.collect()
        tracemalloc.start()
        for _ in read_calls(str(path), ["main"], ["campaign"], problems):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(problems.listed()) <= 101
        return most

    # Of what is kept once, words and labels, there are 10,000 at most.
    few = 11_000 if name in {"labels.csv", "labels.json", "bad.yaml"} else 3_000
    assert peak(2 * few) < 1.2 * peak(few) + 100_000


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        Path.mkdir,
        lambda path: Path(path).symlink_to("/dev/zero"),
        lambda path: Path(path).symlink_to(path),
        lambda path: os.mknod(path, 0o600 | stat.S_IFSOCK),
        lambda _: None,
    ],
)
@pytest.mark.parametrize("ending", ["txt", "csv", "yaml"])
def test_what_is_no_file(tmp_path: Path, make: Callable[[Path], object], ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    make(path)
    reason = "not a regular file|Is a directory|Too many levels|No such (device|file)"
    with pytest.raises(ConfigError, match=f"cannot be read: ({reason})"):
        read_all(path)


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a\n")
    problems = Problems(str(path))
    calls = read_calls(str(path), ["main"], [], problems)
    with path.open("w") as file:
        file.truncate(MAX_FILE + 1)
    with pytest.raises(ConfigError, match="is larger than 65536 KiB"):
        list(calls)


def test_what_stands_before_a_bad_byte_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\n" * 10_000 + b"\xff\n")
    calls = read_calls(str(path), ["main"], [], Problems(str(path)))
    assert next(calls).reference_id == "a"
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        list(calls)


def test_a_surrogate_of_a_variable_is_not_replaced_by_what_an_id_can_have() -> None:
    problems = Problems("config.yaml")
    calls = list(validate_calls([(1, "a\udcffb")], LoadContext(Path(), problems)))
    assert (calls, problems.total) == ([], 1)
