"""Patterns of `watch.files`: which files they find, and which paths they match."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Final

_ESCAPED: Final = re.compile(r"\[([*?[])\]")


def find(pattern: str) -> Iterator[str]:
    """Yield the paths that a pattern finds, as `glob` does. Blocking.

    For each part of the pattern, a folder is read once, by the shortest way without links where
    there is one: links may lead in circles. What cannot be read is left out.
    """
    parts = [part for part in pattern.split("/") if part]
    seen: set[tuple[int, int, int]] = set()
    folders = deque([("/" if pattern.startswith("/") else "", 0)])
    links = deque[tuple[str, int]]()
    while folders or links:
        folder, number = folders.popleft() if folders else links.popleft()
        if not _first_visit(folder, number, seen):
            continue
        for path, following, is_link in _step(folder, number, parts):
            if following == len(parts):
                yield path
            else:
                (links if is_link else folders).append((path, following))


def _first_visit(folder: str, number: int, seen: set[tuple[int, int, int]]) -> bool:
    """Return whether a folder exists, and is reached for the first time at a part."""
    try:
        status = os.stat(folder or ".")  # noqa: PTH116 - a third of the time
    except (OSError, ValueError):
        return False
    place = status.st_dev, status.st_ino, number
    if place in seen or not stat.S_ISDIR(status.st_mode):
        return False
    seen.add(place)
    return True


def _step(folder: str, number: int, parts: Sequence[str]) -> Iterator[tuple[str, int, bool]]:
    """Yield the paths that a part leads to, the number of the next part, and if by a link."""
    part, last = parts[number], number + 1 == len(parts)
    if not _is_magic(part):
        path = os.path.join(folder, _unescape(part))  # noqa: PTH118 - keeps `..`
        if not last or os.path.lexists(path):
            yield path, number + 1, False
        return
    deep = part == "**"
    if deep and not last:
        yield folder, number + 1, False  # it also matches no folder at all
    for name, is_folder, is_link in _entries(folder):
        hidden = name.startswith(".") and not part.startswith(".")
        if hidden or not (deep or fnmatchcase(name, part)):
            continue
        path = os.path.join(folder, name)  # noqa: PTH118 - as above
        if last:
            yield path, number + 1, is_link
        if (is_folder or is_link) and (deep or not last):
            yield path, number if deep else number + 1, is_link


def _entries(folder: str) -> list[tuple[str, bool, bool]]:
    """Return the names in a folder, sorted, and whether each is a folder or a link."""
    try:
        with os.scandir(folder or ".") as entries:
            return sorted(
                (entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink())
                for entry in entries
            )
    except OSError:
        return []  # it cannot be read


def _is_magic(pattern: str) -> bool:
    return glob.has_magic(_ESCAPED.sub("", pattern))


def _unescape(pattern: str) -> str:
    return _ESCAPED.sub(r"\1", pattern)


def literals(patterns: Iterable[str]) -> list[str]:
    """Return the paths that are named without a wildcard."""
    return [_unescape(pattern) for pattern in patterns if not _is_magic(pattern)]


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Return whether a pattern would find a path, if it existed."""
    return any(_matches(pattern.split("/"), path.split("/")) for pattern in patterns)


def _matches(pattern: Sequence[str], path: Sequence[str]) -> bool:
    reached = _with_skips(pattern, {0})  # the parts of the pattern that may be next
    for part in path:
        following = {
            number if pattern[number] == "**" else number + 1
            for number in reached
            if number < len(pattern)
            and (pattern[number] == "**" or fnmatchcase(part, pattern[number]))
        }
        reached = _with_skips(pattern, following)
    return len(pattern) in reached


def _with_skips(pattern: Sequence[str], reached: set[int]) -> set[int]:
    for number in range(min(reached, default=len(pattern)), len(pattern)):
        if number in reached and pattern[number] == "**":
            reached.add(number + 1)
    return reached
