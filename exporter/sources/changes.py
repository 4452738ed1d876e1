"""Which files have changed and lie still.

By looking again and again: that also sees symlinks that are swapped far away, as Kubernetes does,
and files of other machines, which no event tells.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

LOOK_EVERY: Final = 0.5
"""Seconds from one look to the next."""

_LOOKS_AT_MOST: Final = 2

# At the first look: what was not written to for so long lies still.
_STILL: Final = 1_000_000_000


class Stamp(NamedTuple):
    """What changes when a file does."""

    device: int
    inode: int
    modified: int  # nanoseconds
    changed: int  # of name, owner, mode or content, in nanoseconds
    size: int


def stamp_of(path: str) -> Stamp | None:
    """Return the stamp of the file that a path leads to; None where there is none to be seen."""
    try:
        found = os.stat(path)  # noqa: PTH116 - half the time, for thousands of files
    except (OSError, ValueError):
        return None
    if stat.S_ISDIR(found.st_mode):
        return None
    return Stamp(
        found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
    )  # fmt: skip


_NEVER: Final = Stamp(0, 0, 0, 0, -1)
_ABSENT: Final = Stamp(0, 0, 0, 0, -2)


class Change(NamedTuple):
    """A file that is to be read.

    Attributes:
        stamp: as it was found.
        settled: it lies still; else it is being written, and its end may be half-written.
    """

    path: str
    stamp: Stamp
    settled: bool


class Watched:
    """Files, as they were at the last look and as they were when they were last read."""

    def __init__(self) -> None:
        self._seen: dict[str, Stamp] = {}
        self._read: dict[str, Stamp] = {}
        self._looks: dict[str, int] = {}

    def look(self, paths: Iterable[str], *, wait: bool = True) -> list[Change]:
        """Look at files. Blocking, for as long as the file system takes.

        Args:
            paths: all files that are expected; one that is missing, or that comes back, has
                changed.
            wait: until a file lies still, but not for more than a few looks.

        Returns:
            The files that have changed since they were last read, which is when `read` was told
            of them.
        """
        return self.compare({path: stamp_of(path) or _ABSENT for path in paths}, wait=wait)

    def compare(self, found: Mapping[str, Stamp], *, wait: bool = True) -> list[Change]:
        """Compare files with the last look.

        Args:
            found: all files that there are.
            wait: as of `look`.

        Returns:
            The files that have changed since they were last read, which is when `read` was told
            of them.
        """
        now = time.time_ns()
        changes = []
        for path, stamp in found.items():
            if self._read.get(path) == stamp:
                self._looks.pop(path, None)
                continue
            looks = self._looks[path] = self._looks.get(path, 0) + 1
            settled = self._seen.get(path) == stamp if wait else now - stamp.changed > _STILL
            if settled or not wait or looks > _LOOKS_AT_MOST:
                changes.append(Change(path, stamp, settled))
                del self._looks[path]
        self._seen = dict(found)
        return changes

    def read(self, change: Change) -> None:
        """Note that a file has been read as it was found."""
        self._read[change.path] = change.stamp

    def note(self, path: str) -> None:
        """Take a file that was never read as read now."""
        if path not in self._read:
            self._seen[path] = self._read[path] = stamp_of(path) or _ABSENT

    def forget(self, path: str) -> None:
        """Have a file that was read be read again."""
        if path in self._read:
            self._read[path] = _NEVER
