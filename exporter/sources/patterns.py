"""Patterns of `watch.files`: which files they find, and which they would."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum, auto
from fnmatch import fnmatchcase
from operator import itemgetter
from typing import Final

_ESCAPED: Final = re.compile(r"\[([*?[])\]")


def found(pattern: str) -> Iterator[str]:
    """Yield the paths that a pattern finds, as `glob` does. Blocking.

    For each part of the pattern, a folder is looked into once, by the shortest way without links
    where there is one: links may lead in circles. What cannot be looked into is left out.
    """
    parts = [part for part in pattern.split("/") if part]
    seen: set[tuple[int, int, int]] = set()
    folders = deque([("/" if pattern.startswith("/") else "", 0)])
    links = deque[tuple[str, int]]()
    while folders or links:
        folder, number = folders.popleft() if folders else links.popleft()
        for path, following, kind in _step(folder, number, parts, seen):
            if following == len(parts):
                yield path
            else:
                (links if kind is _Kind.LINK else folders).append((path, following))


class _Kind(Enum):
    FOLDER = auto()
    LINK = auto()
    OTHER = auto()


def _step(
    folder: str, number: int, parts: Sequence[str], seen: set[tuple[int, int, int]]
) -> Iterator[tuple[str, int, _Kind]]:
    """Yield the paths that a part of a pattern leads to, each with the part that follows there."""
    if not _new(folder, number, seen):
        return
    part, last = parts[number], number + 1 == len(parts)
    if not glob.has_magic(_ESCAPED.sub("", part)):
        path = os.path.join(folder, _ESCAPED.sub(r"\1", part))  # noqa: PTH118 - keeps `..`
        if not last or os.path.lexists(path):
            yield path, number + 1, _Kind.FOLDER
        return
    deep = part == "**"
    if deep and not last:
        yield folder, number + 1, _Kind.FOLDER  # it may be no folder at all
    for name, kind in _entries(folder):
        hidden = name.startswith(".") and not part.startswith(".")
        if hidden or not (deep or fnmatchcase(name, part)):
            continue
        path = os.path.join(folder, name)  # noqa: PTH118 - as above
        if last:
            yield path, number + 1, kind
        if kind is not _Kind.OTHER and (deep or not last):
            yield path, number if deep else number + 1, kind


def _new(folder: str, number: int, seen: set[tuple[int, int, int]]) -> bool:
    """Tell whether a folder is there, and is come to for the first time at a part."""
    try:
        status = os.stat(folder or ".")  # noqa: PTH116 - a third of the time
    except (OSError, ValueError):
        return False
    place = status.st_dev, status.st_ino, number
    if place in seen or not stat.S_ISDIR(status.st_mode):
        return False
    seen.add(place)
    return True


def _entries(folder: str) -> list[tuple[str, _Kind]]:
    """Return what is in a folder, by name; nothing where it cannot be looked into."""
    try:
        with os.scandir(folder or ".") as entries:
            return sorted(((entry.name, _kind(entry)) for entry in entries), key=itemgetter(0))
    except OSError:
        return []


def _kind(entry: os.DirEntry[str]) -> _Kind:
    if entry.is_symlink():
        return _Kind.LINK
    return _Kind.FOLDER if entry.is_dir(follow_symlinks=False) else _Kind.OTHER


def literals(patterns: Iterable[str]) -> list[str]:
    """Return the paths that are named without a wildcard."""
    return [
        _ESCAPED.sub(r"\1", pattern)
        for pattern in patterns
        if not glob.has_magic(_ESCAPED.sub("", pattern))
    ]


def covered(path: str, patterns: Iterable[str]) -> bool:
    """Tell whether a pattern would find a path, if it were there."""
    return any(_matches(pattern.split("/"), path.split("/")) for pattern in patterns)


def _matches(pattern: Sequence[str], path: Sequence[str]) -> bool:
    # The numbers of the parts of the pattern that may be next.
    reached = _with_skips(pattern, {0})
    for part in path:
        going_on = {
            number if pattern[number] == "**" else number + 1
            for number in reached
            if number < len(pattern)
            and (pattern[number] == "**" or fnmatchcase(part, pattern[number]))
        }
        reached = _with_skips(pattern, going_on)
    return len(pattern) in reached


def _with_skips(pattern: Sequence[str], reached: set[int]) -> set[int]:
    # `**` may be no folder at all.
    for number in range(min(reached, default=len(pattern)), len(pattern)):
        if number in reached and pattern[number] == "**":
            reached.add(number + 1)
    return reached
