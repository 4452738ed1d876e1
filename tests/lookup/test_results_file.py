from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from exporter.errors import ResultsError
from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.ids import ReferenceId, reference_id, reference_key
from exporter.lookup.line import COLUMNS, CallName, Line, line_of
from exporter.lookup.results_file import ResultsFile

HEADER = ",".join(COLUMNS) + "\n"
GOOD = line_of("main", reference_id("a"), Answer(Outcome.NOT_FOUND, "105", 'say "no", x'), 1e9)
BAD = line_of("main", reference_id("b"), Answer(Outcome.TIMEOUT), 1e9)


def names(*ids: str) -> set[CallName]:
    return {("main", reference_key(name)) for name in ids}


def written(path: Path, *lines: Line) -> bytes:
    file = ResultsFile(path, ())
    file.write(lines)
    file.close()
    return path.read_bytes()


@pytest.mark.parametrize("ending", ["csv", "json"])
@pytest.mark.parametrize("cut", [0, 1, 40, 10_000])
def test_what_is_there_is_kept_and_the_rest_cut_off(tmp_path: Path, ending: str, cut: int) -> None:
    path = tmp_path / f"results.{ending}"
    whole = written(path, GOOD)
    both = written(path, replace(GOOD, reference_id=reference_id("c")))
    path.write_bytes(both[: max(0, len(both) - cut)])
    path.chmod(0o640)
    file = ResultsFile(path, names("a", "c", "d"))
    assert file.answered == names(*{0: "ac", 1: "a", 40: "a", 10_000: ""}[cut])
    file.close()
    header = HEADER.encode() if ending == "csv" else b""
    assert path.read_bytes() == {0: both, 10_000: header}.get(cut, whole)
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == [path.name]  # noqa: PTH208


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_ids_that_look_like_formulas_are_known_again(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"results.{ending}"
    odd = ("=1+1", "'=1+1", "-5", "@a", "'a")
    before = written(path, *(replace(GOOD, reference_id=ReferenceId(name)) for name in odd))
    file = ResultsFile(path, names(*odd))
    assert file.answered == names(*odd)
    file.close()
    assert path.read_bytes() == before
    if ending == "csv":
        assert [line.split(b",")[0] for line in before.splitlines()[1:]] == [
            b"'=1+1", b"''=1+1", b"'-5", b"'@a", b"'a",
        ]  # fmt: skip


def test_a_line_without_an_answer_goes_when_it_is_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "real.csv"
    link = tmp_path / "results.csv"
    link.symlink_to(path.name)
    both = written(link, BAD, GOOD)
    file = ResultsFile(link, names("a"))
    assert file.answered == names("a")
    file.close()
    assert path.read_bytes() == both
    file = ResultsFile(link, names("b"))
    assert file.answered == set()
    file.close()
    assert path.read_text().splitlines()[1:] == both.decode().splitlines()[2:]
    assert link.is_symlink()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.csv", "reference_id,account\na,main\n", "its first line has other columns"),
        ("x.csv", "hello", "is no file of results"),
        ("x.csv", HEADER + "a,main\n", "line 2 is none"),
        ("x.csv", HEADER + "a,main" + "," * 5 + "odd" + "," * 4 + "\n", "line 2 is none"),
        ("x.csv", HEADER + '"\n', "line 2 is none"),
        ("x.csv", HEADER + "\udcff\n", "line 2 is none"),
        ("x.json", "[]\n", "line 1 is none"),
        ("x.json", '{"account": 1, "reference_id": "a", "outcome": "ok"}\n1\n', "line 2 is none"),
        ("x.json", '{"reference_id": 1, "account": "a", "outcome": "ok"}\n', "line 1 is none"),
        ("x.json", "hello", "is no file of results"),
    ],
)
def test_what_is_no_file_of_results_is_left_alone(
    tmp_path: Path, name: str, content: str, reason: str
) -> None:
    path = tmp_path / name
    before = content.encode(errors="surrogateescape")
    path.write_bytes(before)
    with pytest.raises(ResultsError, match=reason):
        ResultsFile(path, names("a"))
    assert path.read_bytes() == before


def test_what_is_no_file_at_all(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for name, reason in (
        ("folder.csv", "Is a directory"),
        ("pipe.csv", "is no regular file"),
        ("missing/x.csv", "No such file"),
    ):
        with pytest.raises(ResultsError, match=reason):
            ResultsFile(tmp_path / name, ())


def test_a_disk_that_is_full_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    file = ResultsFile(path, ())
    file.write([GOOD])
    whole = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for a part of a line.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, hard))
    try:
        with pytest.raises(ResultsError, match="File too large"):
            file.write([GOOD])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == whole
    # Somebody else may go on with it.
    ResultsFile(path, ()).close()
