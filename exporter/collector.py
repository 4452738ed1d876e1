"""Python's collector of cycles, and when it is to rest."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Keep Python's collector of cycles from looking at every call again while many are made.

    It would stand in the event loop's way for a tenth of a second each time, and find nothing.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
