"""Reading small files that a user named."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


class FileProblemError(Exception):
    """A file cannot be used; the message says why and holds nothing of its content."""


def read_text(path: Path, limit: int) -> str:
    """Return the text of a regular file of at most `limit` bytes, without a byte order mark.

    Raises:
        FileProblemError: it cannot be read, is not regular, too large or not UTF-8.
    """
    try:
        # Opened before it is looked at, so that nothing can be swapped in between; without
        # blocking, because opening a FIFO waits for a writer that may never come.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FileProblemError("cannot be read: not a regular file")
            data = file.read(limit + 1)
    except OSError as error:
        raise FileProblemError(f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise FileProblemError("cannot be read: not a path") from None
    if len(data) > limit:
        raise FileProblemError(f"is larger than {limit >> 10} KiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FileProblemError("is not UTF-8 text") from None


@dataclass(slots=True)
class NamedFiles:
    """The files that a configuration names.

    Attributes:
        paths: of all of them, also of those that cannot be read.
        exposed: of those that hold a secret and that anybody on the machine can read.
        before: is told of each file before it is read.
    """

    paths: set[Path] = field(default_factory=set)
    exposed: set[Path] = field(default_factory=set)
    before: Callable[[Path], None] = lambda _: None

    def read(self, path: Path, limit: int, *, secret: bool = False) -> str:
        """Read one, as `read_text` does.

        Raises:
            FileProblemError: as there.
        """
        self.paths.add(path)
        self.before(path)
        text = read_text(path, limit)
        if secret and _exposed(path):
            self.exposed.add(path)
        return text


def _exposed(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False  # gone since it was read
