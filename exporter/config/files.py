"""Reading files that a user named."""

from __future__ import annotations

import io
import os
import stat
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class FileProblemError(Exception):
    """A file cannot be used; the message says why and holds nothing of its content."""


class _Bounded(io.RawIOBase):
    """The bytes of a file; more than a limit of them are an error, also where it grows."""

    def __init__(self, file: io.FileIO, limit: int) -> None:
        self._file = file
        self._limit = self._left = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        count = self._file.readinto(buffer)
        self._left -= count or 0
        if self._left < 0:
            raise _too_large(self._limit)
        return count


@contextmanager
def open_text(path: Path, limit: int, newline: str = "\n") -> Iterator[TextIO]:
    """Open a regular file of at most `limit` bytes of text: UTF-8, or UTF-16 with its mark.

    Args:
        path: the file.
        limit: bytes.
        newline: where lines end, as of `open`; not translated.

    Raises:
        FileProblemError: it cannot be read, is not regular, too large or no such text; also
            while it is read within the block.
    """
    try:
        # Opened before it is looked at, so that nothing can be swapped in between; without
        # blocking, because opening a FIFO waits for a writer that may never come.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            folder = stat.S_ISDIR(found.st_mode)
            raise FileProblemError(
                f"cannot be read: {'Is a directory' if folder else 'not a regular file'}"
            )
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if found.st_size > limit:
                raise _too_large(limit)
            raw = io.BufferedReader(_Bounded(file, limit))
            # Excel's "Unicode text", and what PowerShell redirects.
            wide = raw.peek(2)[:2] in (BOM_UTF16_LE, BOM_UTF16_BE)
            encoding = "utf-16" if wide else "utf-8-sig"
            yield io.TextIOWrapper(raw, encoding=encoding, newline=newline)
    except OSError as error:
        raise FileProblemError(f"cannot be read: {error.strerror}") from None
    except UnicodeError:
        raise FileProblemError("is not UTF-8 text") from None
    except ValueError:
        raise FileProblemError("cannot be read: not a path") from None


def read_text(path: Path, limit: int) -> str:
    """Return the text of a small file; see `open_text`.

    Raises:
        FileProblemError: as there.
    """
    with open_text(path, limit) as file:
        return file.read()


def _too_large(limit: int) -> FileProblemError:
    return FileProblemError(f"is larger than {limit >> 10} KiB")


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

    def note(self, path: Path) -> None:
        """Take down one that is about to be read."""
        self.paths.add(path)
        self.before(path)

    def read(self, path: Path, limit: int, *, secret: bool = False) -> str:
        """Read one, as `read_text` does.

        Raises:
            FileProblemError: as there; the message names the file, whose path is no secret.
        """
        self.note(path)
        try:
            text = read_text(path, limit)
        except FileProblemError as error:
            shown = "".join(c if c.isprintable() else "?" for c in os.path.abspath(path))  # noqa: PTH100 - keeps symlinks
            raise FileProblemError(f"the file {shown} {error}") from None
        if secret and _exposed(path):
            self.exposed.add(path)
        return text


def _exposed(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False  # gone since it was read
