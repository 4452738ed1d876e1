"""Write a new file that appears under its name when it is complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from exporter.errors import ExporterError


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield an empty file to write, which only its owner can read.

    At the end of the block, sync it and rename it to `path`; if the block fails, remove it. A file
    that was left unfinished is replaced: its command was killed, or fails at its end.

    Raises:
        ExporterError: the file exists already, cannot be written, or another command writes it.
    """
    if os.path.lexists(path):
        raise ExporterError(f"{path}: exists already; name another file")
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        unfinished.unlink(missing_ok=True)
        # Written without opening it again: its name may lead elsewhere by then.
        with open(unfinished, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if not _names(unfinished, file):
                    raise ExporterError(f"{path}: another command writes it; name another file")
                unfinished.rename(path)
            finally:
                if _names(unfinished, file):
                    unfinished.unlink()
    except OSError as error:
        raise ExporterError(f"{path}: cannot be written ({error.strerror})") from None


def _names(path: Path, file: BinaryIO) -> bool:
    """Return whether a path names an open file."""
    with suppress(OSError):
        return os.path.samestat(path.lstat(), os.fstat(file.fileno()))
    return False
