"""Reading small files that a user named."""

from __future__ import annotations

import os
import stat
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
