from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from exporter.config.files import stat_file
from exporter.sources.file_watcher import Change, FileWatcher, find, literals, matches


def compare(watcher: FileWatcher, *paths: Path, wait: bool = True) -> list[Change]:
    """Compare the files that exist."""
    found = {str(path): stat for path in paths if (stat := stat_file(path))}
    return watcher.compare(found, wait=wait)


def look(watcher: FileWatcher, *paths: Path, wait: bool = True) -> list[tuple[str, bool]]:
    """Look at the files that exist, and read what lies still."""
    changes = compare(watcher, *paths, wait=wait)
    for change in changes:
        if change.settled:
            watcher.mark_read(change)
    return [(Path(change.path).name, change.settled) for change in changes]


def lies_still(path: Path) -> None:
    """Wait until a file was not written to for long enough."""
    while time.time_ns() - path.stat().st_ctime_ns < 1_100_000_000:
        time.sleep(0.05)


def test_a_file_is_read_once_it_lies_still(tmp_path: Path) -> None:
    watcher, path = FileWatcher(), tmp_path / "a"
    assert look(watcher, path) == []
    path.write_text("1")
    assert look(watcher, path) == []
    assert look(watcher, path) == [("a", True)]
    assert look(watcher, path) == []
    path.write_text("12")
    assert look(watcher, path) == []
    path.write_text("123")
    assert look(watcher, path) == []
    assert look(watcher, path) == [("a", True)]


def test_the_same_size_at_the_same_second_is_another_file(tmp_path: Path) -> None:
    watcher, path, other = FileWatcher(), tmp_path / "a", tmp_path / "b"
    for file in (path, other):
        file.write_text("x")
        os.utime(file, (1_700_000_000, 1_700_000_000))
    look(watcher, path)
    look(watcher, path)
    other.replace(path)
    assert [look(watcher, path) for _ in "12"] == [[], [("a", True)]]


def test_the_first_time_nobody_waits(tmp_path: Path) -> None:
    watcher, path, fresh = FileWatcher(), tmp_path / "a", tmp_path / "fresh"
    path.write_text("1")
    lies_still(path)
    fresh.write_text("1")  # may be half-written
    assert look(watcher, path, fresh, wait=False) == [("a", True), ("fresh", False)]
    assert look(watcher, path, fresh) == [("fresh", True)]
    assert look(watcher, path, fresh) == []


def test_a_symlink_that_is_swapped_far_away(tmp_path: Path) -> None:
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "calls.txt").write_text(version)
    data, path = tmp_path / "..data", tmp_path / "calls.txt"
    data.symlink_to("1")
    path.symlink_to("..data/calls.txt")
    watcher = FileWatcher()
    look(watcher, path)
    look(watcher, path)
    (tmp_path / "new").symlink_to("2")
    (tmp_path / "new").replace(data)
    assert look(watcher, path) == []
    assert look(watcher, path) == [("calls.txt", True)]


def test_what_was_not_read_well_is_read_again(tmp_path: Path) -> None:
    watcher, path = FileWatcher(), tmp_path / "a"
    path.write_text("1")
    look(watcher, path)
    for _ in range(3):
        assert [change.settled for change in compare(watcher, path)] == [True]  # and not read
    assert look(watcher, path) == [("a", True)]
    assert look(watcher, path) == []
    watcher.forget(str(path))
    assert look(watcher, path) == [("a", True)]


def test_what_changes_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    watcher, path = FileWatcher(), tmp_path / "a"
    path.write_text("1")
    compare(watcher, path)
    (change,) = compare(watcher, path)
    path.write_text("12")
    watcher.mark_read(change)
    assert look(watcher, path) == []
    assert look(watcher, path) == [("a", True)]


# Which files patterns find.


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    names = "a.txt [1].txt .hidden.txt b/a.txt b/c/d/a.txt b/.e/a.txt f/g.csv"
    for name in names.split():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "gone.txt").symlink_to("nothing")
    (tmp_path / "self.txt").symlink_to("self.txt")
    return tmp_path


@pytest.mark.parametrize(
    "pattern",
    [
        *("*", "*.txt", "**/*.txt", "**", "b/**", "**/a.txt", "*/a.txt", "b/*/d/*"),
        *("**/c/**/*.txt", "a.txt", "[[]1].txt", "nothing.txt", "nothing/*.txt", "a.txt/*"),
        *("b/.e/*", ".*", "b/.*/*", "?/../*.txt", "b//a.txt", "**/**/a.txt", "*.txt/**"),
    ],
)
def test_what_a_pattern_finds(tree: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def files(paths: Iterable[str]) -> list[str]:
        return sorted({os.path.normpath(path) for path in paths if not Path(path).is_dir()})

    monkeypatch.chdir(tree)
    for name in (pattern, f"{tree}/{pattern}"):
        expected = files(glob.glob(name, recursive=True))  # noqa: PTH207 - compared
        assert files(find(name)) == expected


def test_links_that_lead_in_circles_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a" / "b"):
        for name in ("x", "y"):
            (folder / name).symlink_to(".")
        (folder / "up").symlink_to(tmp_path)
        (folder / "c.txt").touch()
    every = ["a/b/c.txt", "a/c.txt", "c.txt"]
    for pattern in ("**/*.txt", "**/**/**/*.txt", "**/c.txt"):
        paths = find(f"{tmp_path}/{pattern}")
        assert sorted(os.path.relpath(path, tmp_path) for path in paths) == every
    # Each part could multiply the paths.
    paths = find(f"{tmp_path}/{'*/' * 100}c.txt")
    assert len({os.path.realpath(path) for path in paths}) == len(every)


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "a.txt").touch()
    (tmp_path / "calls").mkdir()
    for name in ("z", "first"):
        (tmp_path / "calls" / name).symlink_to("../elsewhere")
    # By the first name of a folder; by its own, where it is found by that.
    assert list(find(f"{tmp_path}/calls/**/*.txt")) == [f"{tmp_path}/calls/first/deep/a.txt"]
    assert list(find(f"{tmp_path}/**/*.txt")) == [f"{tmp_path}/elsewhere/deep/a.txt"]


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/c/a.txt", "/c/a.txt", True),
        ("/c/a.txt", "/c/b.txt", False),
        ("/c/*.txt", "/c/b.txt", True),
        ("/c/*.txt", "/c/d/b.txt", False),
        ("/c/**/a.txt", "/c/a.txt", True),
        ("/c/**/a.txt", "/c/d/e/a.txt", True),
        ("/c/**/a.txt", "/d/a.txt", False),
        ("/**", "/c/a.txt", True),
        ("/c/[[]1].txt", "/c/[1].txt", True),
        ("/" + "**/" * 300 + "a.txt", "/" + "b/" * 300 + "b.txt", False),
    ],
)
def test_what_a_pattern_covers(pattern: str, path: str, *, expected: bool) -> None:
    assert matches(path, [pattern]) is expected


def test_paths_without_a_wildcard() -> None:
    assert literals(["/a*/b.txt", "/c.txt", "/[[]d].txt", "/e[1].txt"]) == ["/c.txt", "/[d].txt"]
