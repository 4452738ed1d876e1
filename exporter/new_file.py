"""Write a new file that appears under its name when it is complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from exporter.errors import ExporterError


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield an empty file to write, which only its owner can read, and rename it to `path`.

    If the block fails, no file is left behind.

    Raises:
        ExporterError: the file exists already, or cannot be written.
    """
    if os.path.lexists(path):
        raise ExporterError(f"{path}: exists already; name another file")
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        unfinished.unlink(missing_ok=True)
        unfinished.touch(0o600, exist_ok=False)
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.rename(path)
    except OSError as error:
        raise ExporterError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
