"""Threads for blocking work beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from exporter.errors import SourceError
from exporter.worker import Worker

R = TypeVar("R")

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


class DetachedThreads:
    """Runs blocking work that may never end, in threads of its own.

    The pool of `ready_threads` would lose a thread to a file system that does not answer, and the
    end of the process would wait for it.

    Args:
        timeout: seconds that are waited for a piece of work.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._running: set[Hashable] = set()
        self._idle: list[Worker] = []

    def hangs(self, key: Hashable) -> bool:
        """Tell whether work that was started under a key still runs."""
        return key in self._running

    async def run(self, key: Hashable, work: Callable[[], R]) -> R:
        """Run work; what takes longer than the timeout goes on, and its result is dropped.

        Args:
            key: names the work for `hangs`.
            work: called in the thread.

        Raises:
            SourceError: it does not end in time, work under this key still runs, or there are no
                threads left.
        """
        if key in self._running:
            raise SourceError("no answer")
        worker = self._idle.pop() if self._idle else Worker("detached")
        done = worker.submit(work)
        self._running.add(key)
        done.add_done_callback(lambda _: self._running.discard(key))
        finished = False
        try:
            finished = bool((await asyncio.wait([done], timeout=self._timeout))[0])
        finally:
            if finished:
                self._running.discard(key)
                self._idle.append(worker)
            else:
                worker.close()  # once it is done, if ever
                done.add_done_callback(lambda done: done.exception())  # nobody else retrieves it
        if not finished:
            raise SourceError(f"no answer within {self._timeout:g} s")
        return done.result()

    def close(self) -> None:
        """End the threads, each once its work is done."""
        while self._idle:
            self._idle.pop().close()
