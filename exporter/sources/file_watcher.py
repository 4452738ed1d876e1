"""Which files have changed and are not being written.

Found by polling: that also sees symlinks that are swapped far away, as Kubernetes does, and changes
by other machines, which cause no event.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

INTERVAL: Final = 0.5
"""Seconds between two looks."""

# Looks after which a file that is written all the time is read as it is.
_MAX_WAITS: Final = 2
# At the first look, in nanoseconds: what was not written to for so long is settled.
_SETTLED_AGE: Final = 1_000_000_000


class FileStat(NamedTuple):
    """What changes when a file does; times in nanoseconds, `ctime` that of content or metadata."""

    device: int
    inode: int
    mtime: int
    ctime: int
    size: int


_NEVER: Final = FileStat(0, 0, 0, 0, -1)
_ABSENT: Final = FileStat(0, 0, 0, 0, -2)


def stat_file(path: str) -> FileStat | None:
    """Return the stat of the file that a path leads to; None for a folder, or nothing visible."""
    try:
        found = os.stat(path)  # noqa: PTH116 - half the time, for thousands of files
    except (OSError, ValueError):
        return None
    if stat.S_ISDIR(found.st_mode):
        return None
    times = found.st_mtime_ns, found.st_ctime_ns
    return FileStat(found.st_dev, found.st_ino, *times, found.st_size)


class Change(NamedTuple):
    """A file that is to be read.

    Attributes:
        stat: as it was found.
        settled: it is complete; else it is being written, and may end in half a line.
    """

    path: str
    stat: FileStat
    settled: bool


class FileWatcher:
    """Compares files with how they were at the last look, and when they were last read."""

    def __init__(self) -> None:
        self._seen: dict[str, FileStat] = {}
        self._read: dict[str, FileStat] = {}
        self._waits: dict[str, int] = {}

    def look(self, paths: Iterable[str], *, wait: bool = True) -> list[Change]:
        """As `compare`, of files that are expected: a missing one has changed. Blocking."""
        return self.compare({path: stat_file(path) or _ABSENT for path in paths}, wait=wait)

    def compare(self, found: Mapping[str, FileStat], *, wait: bool = True) -> list[Change]:
        """Return the files that have changed since they were last read (see `mark_read`).

        Args:
            found: all files that there are.
            wait: until a file is settled, but for a few looks at most.
        """
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
        """Note that a file has been read as it was found."""
        self._read[change.path] = change.stat

    def note(self, path: str) -> None:
        """Take a file that was never read as read now."""
        if path not in self._read:
            self._seen[path] = self._read[path] = stat_file(path) or _ABSENT

    def forget(self, path: str) -> None:
        """Have a file that was read be read again."""
        if path in self._read:
            self._read[path] = _NEVER
