"""Threads for blocking work beside the event loop."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

THREADS: Final = 6


def ready_threads() -> ThreadPoolExecutor:
    """Return a pool whose threads are there already.

    A pool starts them as they are needed, which fails where the machine has none left: then a
    scrape would be refused, and whatever looks for changes in the background would end.

    Raises:
        RuntimeError: the machine has none left now.
    """
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="beside")
    all_there = threading.Barrier(THREADS + 1)
    try:
        for _ in range(THREADS):
            pool.submit(all_there.wait)
    except RuntimeError:
        all_there.abort()
        raise
    all_there.wait()
    return pool
