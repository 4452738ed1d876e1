from __future__ import annotations

import os
from pathlib import Path

from exporter.sources.changes import Watched


def look(watched: Watched, *paths: Path) -> tuple[list[tuple[str, bool]], list[str]]:
    changes, gone = watched.look(map(str, paths))
    return [(Path(path).name, settled) for path, settled in changes], [Path(p).name for p in gone]


def test_a_file_is_read_once_it_lies_still(tmp_path: Path) -> None:
    watched, path = Watched(), tmp_path / "a"
    assert look(watched, path) == ([], [])
    path.write_text("1")
    assert look(watched, path) == ([], [])
    assert look(watched, path) == ([("a", True)], [])
    assert look(watched, path) == ([], [])
    path.write_text("12")
    assert look(watched, path) == ([], [])
    path.write_text("123")
    assert look(watched, path) == ([], [])
    assert look(watched, path) == ([("a", True)], [])


def test_a_file_that_never_lies_still_is_read_as_it_is(tmp_path: Path) -> None:
    watched, path, seen = Watched(), tmp_path / "a", []
    for size in range(1, 7):
        path.write_text("x" * size)
        seen.append(look(watched, path)[0])
    assert seen == [[], [], [("a", False)]] * 2


def test_the_first_time_nobody_waits(tmp_path: Path) -> None:
    watched, path = Watched(), tmp_path / "a"
    path.write_text("1")
    changes, gone = watched.look([str(path)], wait=False)
    assert ([change.settled for change in changes], gone) == ([True], [])
    assert watched.there(str(path))
    assert look(watched, path) == ([], [])


def test_the_same_size_at_the_same_second_is_another_file(tmp_path: Path) -> None:
    watched, path, other = Watched(), tmp_path / "a", tmp_path / "b"
    for file in (path, other):
        file.write_text("x")
        os.utime(file, (1_700_000_000, 1_700_000_000))
    watched.look([str(path)], wait=False)
    other.replace(path)
    assert look(watched, path) == ([], [])
    assert look(watched, path) == ([("a", True)], [])


def test_a_symlink_that_is_swapped_far_away(tmp_path: Path) -> None:
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "calls.txt").write_text(version)
    data, path = tmp_path / "..data", tmp_path / "calls.txt"
    data.symlink_to("1")
    path.symlink_to("..data/calls.txt")
    watched = Watched()
    watched.look([str(path)], wait=False)
    (tmp_path / "new").symlink_to("2")
    (tmp_path / "new").replace(data)
    assert look(watched, path) == ([], [])
    assert look(watched, path) == ([("calls.txt", True)], [])


def test_gone_for_one_look_is_not_gone(tmp_path: Path) -> None:
    watched, path = Watched(), tmp_path / "a"
    path.write_text("1")
    watched.look([str(path)], wait=False)
    kept = path.rename(tmp_path / "b")
    assert look(watched, path) == ([], [])
    kept.rename(path)
    look(watched, path)
    look(watched, path)
    path.unlink()
    assert look(watched, path) == ([], [])
    assert look(watched, path) == ([], ["a"])
    assert look(watched, path) == ([], [])


def test_what_was_not_read_well_is_read_again(tmp_path: Path) -> None:
    watched, path = Watched(), tmp_path / "a"
    path.write_text("1")
    watched.look([str(path)], wait=False)
    watched.forget(str(path))
    assert look(watched, path) == ([("a", True)], [])


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert Watched().look([str(tmp_path), "\0"], wait=False) == ([], [])
