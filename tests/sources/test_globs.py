from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from exporter.sources.file_watcher import find, literals, matches


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "a.txt",
        "[1].txt",
        ".hidden.txt",
        "b/a.txt",
        "b/c/d/a.txt",
        "b/.e/a.txt",
        "f/g.csv",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "gone.txt").symlink_to("nothing")
    (tmp_path / "self.txt").symlink_to("self.txt")
    return tmp_path


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "*",
            "*.txt",
            "**/*.txt",
            "**",
            "b/**",
            "**/a.txt",
            "*/a.txt",
            "b/*/d/*",
            "**/c/**/*.txt",
        ),
        *(
            "a.txt",
            "[[]1].txt",
            "nothing.txt",
            "nothing/*.txt",
            "a.txt/*",
            "b/.e/*",
            ".*",
            "b/.*/*",
        ),
        *("?/../*.txt", "b//a.txt", "**/**/a.txt", "*.txt/**"),
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
