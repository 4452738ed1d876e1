from __future__ import annotations

import os
import time
from pathlib import Path

from exporter.sources.file_watcher import FileWatcher, stat_file


def look(watcher: FileWatcher, *paths: Path, wait: bool = True) -> list[tuple[str, bool]]:
    """Look, and read what lies still."""
    changes = watcher.look(map(str, paths), wait=wait)
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


def test_a_file_that_never_lies_still_is_read_as_it_is(tmp_path: Path) -> None:
    watcher, path, seen = FileWatcher(), tmp_path / "a", []
    for size in range(1, 7):
        path.write_text("x" * size)
        seen.append(look(watcher, path))
    assert seen == [[], [], [("a", False)]] * 2


def test_the_first_time_nobody_waits(tmp_path: Path) -> None:
    watcher, path, fresh = FileWatcher(), tmp_path / "a", tmp_path / "fresh"
    path.write_text("1")
    lies_still(path)
    fresh.write_text("1")  # may be half-written
    assert look(watcher, path, fresh, wait=False) == [("a", True), ("fresh", False)]
    assert look(watcher, path, fresh) == [("fresh", True)]
    assert look(watcher, path, fresh) == []


def test_the_same_size_at_the_same_second_is_another_file(tmp_path: Path) -> None:
    watcher, path, other = FileWatcher(), tmp_path / "a", tmp_path / "b"
    for file in (path, other):
        file.write_text("x")
        os.utime(file, (1_700_000_000, 1_700_000_000))
    look(watcher, path)
    look(watcher, path)
    other.replace(path)
    assert look(watcher, path) == []
    assert look(watcher, path) == [("a", True)]


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
        assert [change.settled for change in watcher.look([str(path)])] == [True]  # and not read
    assert look(watcher, path) == [("a", True)]
    assert look(watcher, path) == []
    watcher.forget(str(path))
    assert look(watcher, path) == [("a", True)]


def test_what_changes_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    watcher, path = FileWatcher(), tmp_path / "a"
    path.write_text("1")
    (change,) = watcher.look([str(path)], wait=False)
    path.write_text("12")
    watcher.mark_read(change)
    assert look(watcher, path) == []
    assert look(watcher, path) == [("a", True)]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert stat_file(str(tmp_path)) is None
    assert stat_file("\0") is None
