"""Threads for blocking work beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Final, TypeVar

from exporter.errors import SourceError

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


class SerialThread:
    """A thread that does one piece of work after another, for the event loop it was made in.

    The end of the process does not wait for it, as it would for those of an executor: a database
    may take its time.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._name = name
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._started = False

    def submit(self, work: Callable[[], R]) -> asyncio.Future[R]:
        """Have work done after what was submitted before, also if nobody waits for it.

        Who waits gets a `SourceError` where the machine has no thread left.
        """
        done: asyncio.Future[R] = self._loop.create_future()
        try:
            self._start()
        except RuntimeError:
            done.set_exception(SourceError("no thread can be started"))
            done.exception()  # asked for, so that nobody complains where nobody waits
        else:
            self._work.put(partial(self._do, work, done))
        return done

    def _start(self) -> None:
        if not self._started:
            threading.Thread(target=self._run, daemon=True, name=self._name).start()
            self._started = True

    def close(self) -> None:
        """End the thread once everything that was submitted is done."""
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _do(self, work: Callable[[], R], done: asyncio.Future[R]) -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self._tell(done, partial(done.set_exception, error))
        else:
            self._tell(done, partial(done.set_result, result))

    def _tell(self, done: asyncio.Future[R], end: Callable[[], None]) -> None:
        def tell() -> None:
            if not done.cancelled():
                end()

        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(tell)


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
        self._idle: list[SerialThread] = []

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
        worker = self._idle.pop() if self._idle else SerialThread("detached")
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
