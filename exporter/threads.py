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
    """Return a pool whose threads have started.

    A pool starts them as they are needed, which fails where the machine has none left: then a
    scrape would be refused, and background tasks would fail.

    Raises:
        RuntimeError: the machine has none left now.
    """
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="beside")
    started = threading.Barrier(THREADS + 1)
    try:
        for _ in range(THREADS):
            pool.submit(started.wait)
    except RuntimeError:
        started.abort()
        raise
    started.wait()
    return pool


class SerialThread:
    """A thread that runs functions one after the other, for the event loop it was made in.

    The process ends without waiting for it, as it would for those of an executor: a database may
    never answer.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._name = name
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._started = False

    def submit(self, work: Callable[[], R]) -> asyncio.Future[R]:
        """Run a function after those that were submitted before, also if nothing awaits it.

        The future raises a `SourceError` where the machine has no thread left.
        """
        done: asyncio.Future[R] = self._loop.create_future()
        try:
            if not self._started:
                threading.Thread(target=self._run, daemon=True, name=self._name).start()
                self._started = True
        except RuntimeError:
            done.set_exception(SourceError("no thread can be started"))
            done.exception()  # retrieved, so that asyncio logs nothing where nothing awaits it
        else:
            self._work.put(partial(self._do, work, done))
        return done

    def close(self) -> None:
        """End the thread after what was submitted."""
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _do(self, work: Callable[[], R], done: asyncio.Future[R]) -> None:
        try:
            resolve: Callable[[], None] = partial(done.set_result, work())
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            resolve = partial(done.set_exception, error)

        def resolve_unless_cancelled() -> None:
            if not done.cancelled():
                resolve()

        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(resolve_unless_cancelled)


class DetachedThreads:
    """Runs functions that may never return, in threads of their own.

    The pool of `ready_threads` would lose a thread to a file system that does not answer, and the
    process would wait for it at its end.

    Args:
        timeout: seconds to wait for a function.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._running: set[Hashable] = set()
        self._idle: list[SerialThread] = []

    def hangs(self, key: Hashable) -> bool:
        """Return whether a function that was run under a key has not returned."""
        return key in self._running

    async def run(self, key: Hashable, work: Callable[[], R]) -> R:
        """Run a function under a key; after the timeout, it goes on and its result is dropped.

        Raises:
            SourceError: it does not return in time, the last one under this key has not returned,
                or there are no threads left.
        """
        no_answer = f"no answer within {self._timeout:g} s"
        if key in self._running:
            raise SourceError(no_answer)
        worker = self._idle.pop() if self._idle else SerialThread("detached")
        done = worker.submit(work)
        self._running.add(key)
        done.add_done_callback(lambda _: self._running.discard(key))
        try:
            await asyncio.wait([done], timeout=self._timeout)
        finally:
            if finished := done.done():
                self._running.discard(key)
                self._idle.append(worker)
            else:
                worker.close()  # once it is done, if ever
                done.add_done_callback(lambda done: done.exception())  # nobody else retrieves it
        if not finished:
            raise SourceError(no_answer)
        return done.result()

    def close(self) -> None:
        """End the threads, each once its work is done."""
        while self._idle:
            self._idle.pop().close()
