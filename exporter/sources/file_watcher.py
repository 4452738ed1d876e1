"""Detection of changed files, and expansion of patterns.

Files are polled: unlike file events, this detects swapped symlinks (Kubernetes) and changes that
other machines make.
"""

from __future__ import annotations

import glob
import operator
import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Final, NamedTuple

from exporter.config.files import FileStat

INTERVAL: Final = 0.5
"""Seconds between two checks."""

# Checks after which a file is read even though it is still being written.
_MAX_WAITS: Final = 2
# Nanoseconds since the last change after which a file counts as complete at the first check.
_SETTLED_AGE: Final = 1_000_000_000

_ESCAPED: Final = re.compile(r"\[([*?[])\]")


class Change(NamedTuple):
    """A file to read.

    Attributes:
        stat: its attributes at the check.
        settled: False if the file is still being written, and may end in the middle of a line.
    """

    path: str
    stat: FileStat
    settled: bool


class FileWatcher:
    """Compares files with the previous check and with the last read."""

    def __init__(self) -> None:
        self._seen: dict[str, FileStat] = {}
        self._read: dict[str, FileStat] = {}
        self._waits: dict[str, int] = {}

    def compare(self, found: Mapping[str, FileStat], *, wait: bool = True) -> list[Change]:
        """Return which of all files have changed since they were last read (see `mark_read`).

        With `wait`, skip a file that is being written, for a few checks at most. A file that was
        not found for a while has changed, even if it is restored as it was.
        """
        for known in (self._read, self._waits):
            for path in known.keys() - found.keys():
                del known[path]
        now = time.time_ns()
        changes = []
        for path, current in found.items():
            if self._read.get(path) == current:
                self._waits.pop(path, None)
                continue
            waits = self._waits[path] = self._waits.get(path, 0) + 1
            settled = (
                self._seen.get(path) == current if wait else now - current.ctime > _SETTLED_AGE
            )
            if settled or not wait or waits > _MAX_WAITS:
                changes.append(Change(path, current, settled))
                del self._waits[path]
        self._seen = dict(found)
        return changes

    def mark_read(self, change: Change) -> None:
        """Record that a file was read in the state of a change."""
        self._read[change.path] = change.stat

    def forget(self, path: str) -> None:
        """Make the next check report a file again."""
        self._read.pop(path, None)


def find(pattern: str) -> Iterator[str]:
    """Yield the paths that match a pattern, as in `glob`. Blocking.

    Each folder is read once per part of the pattern, first by paths without symlinks, because
    symlinks may form cycles. Unreadable folders are skipped.
    """
    parts = [part for part in pattern.split("/") if part]
    root = "/" if pattern.startswith("/") else ""
    folders, links = deque([(root, 0)]), deque[tuple[str, int]]()  # with the index of the next part
    seen = set[tuple[int, int, int]]()
    while folders or links:
        folder, number = (folders or links).popleft()
        part, following = parts[number], number + 1
        is_last, deep = following == len(parts), part == "**"
        try:
            status = os.stat(folder or ".")  # noqa: PTH116 - a third of the time
            if (place := (status.st_dev, status.st_ino, number)) in seen:
                continue
            seen.add(place)
            entries = _entries(folder, part)
        except (OSError, ValueError):
            continue
        if deep and not is_last:
            folders.append((folder, following))  # `**` also matches zero folders
        for name, is_folder, is_link in entries:
            path = os.path.join(folder, name)  # noqa: PTH118 - keeps `..`
            if is_last:
                yield path
            if is_folder and (deep or not is_last):
                (links if is_link else folders).append((path, number if deep else following))


def _entries(folder: str, part: str) -> list[tuple[str, bool, bool]]:
    """Return matching names in a folder, each with `may be a folder` and `is a symlink`."""
    if not _is_magic(part):
        name = _unescape(part)
        os.lstat(os.path.join(folder, name))  # noqa: PTH118 - as above
        return [(name, True, False)]
    with os.scandir(folder or ".") as entries:
        return sorted(
            (entry.name, entry.is_symlink() or entry.is_dir(), entry.is_symlink())
            for entry in entries
            if part.startswith(".") or not entry.name.startswith(".")
            if part == "**" or fnmatchcase(entry.name, part)
        )


def _is_magic(pattern: str) -> bool:
    return glob.has_magic(_ESCAPED.sub("", pattern))


def _unescape(pattern: str) -> str:
    return _ESCAPED.sub(r"\1", pattern)


def literals(patterns: Iterable[str]) -> list[str]:
    """Return the paths of the patterns without a wildcard."""
    return [_unescape(pattern) for pattern in patterns if not _is_magic(pattern)]


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Return whether a path matches a pattern; the path need not exist."""
    return any(_matches(path.split("/"), pattern) for pattern in patterns)


def _matches(names: list[str], pattern: str) -> bool:
    reached = [True, *(False for _ in names)]  # [n]: the first n names match the parts so far
    for part in pattern.split("/"):
        if part == "**":
            reached = list(accumulate(reached, operator.or_))
        else:
            here = zip(names, reached, strict=False)
            reached = [False, *(before and fnmatchcase(name, part) for name, before in here)]
    return reached[-1]
