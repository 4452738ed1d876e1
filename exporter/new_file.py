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

    At the end of the block, sync it and rename it to `path`; if the block fails, remove it.

    Raises:
        ExporterError: the file exists already, or cannot be written.
    """
    if os.path.lexists(path):
        raise ExporterError(f"{path}: exists already; name another file")
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        unfinished.unlink(missing_ok=True)
        # Written without opening it again: its name may lead elsewhere by then.
        with open(unfinished, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    except OSError as error:
        raise ExporterError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
