"""Threads for work that would block the event loop."""

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
    """Return a pool whose threads are already started.

    A pool that starts threads on demand would fail later, when the machine has no threads left.

    Raises:
        RuntimeError: the machine has no threads left.
    """
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="blocking")
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
    """A thread that runs functions one after the other, for the current event loop.

    Unlike threads of an executor, it does not delay the exit of the process: a database may never
    answer.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._name = name
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._started = False

    def submit(self, work: Callable[[], R]) -> asyncio.Future[R]:
        """Queue a function; it runs even if the future is not awaited or is cancelled.

        The future raises `SourceError` if the machine has no threads left.
        """
        done: asyncio.Future[R] = self._loop.create_future()
        try:
            if not self._started:
                threading.Thread(target=self._run, daemon=True, name=self._name).start()
                self._started = True
        except RuntimeError:
            done.set_exception(SourceError("no thread can be started"))
            done.exception()  # mark as retrieved, so that asyncio does not log it
        else:
            self._work.put(partial(self._do, work, done))
        return done

    def close(self) -> None:
        """End the thread after the queued functions."""
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _do(self, work: Callable[[], R], done: asyncio.Future[R]) -> None:
        try:
            resolve: Callable[[], None] = partial(done.set_result, work())
        except BaseException as error:  # noqa: BLE001 - raised by the future
            resolve = partial(done.set_exception, error)

        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(lambda: None if done.cancelled() else resolve())


class DetachedThreads:
    """Runs functions that may never return, each in a separate thread.

    In the pool of `ready_threads`, a file system that hangs would block a thread forever and
    prevent the process from exiting.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._running: set[Hashable] = set()

    def hangs(self, key: Hashable) -> bool:
        """Return whether the last function run under a key has not returned yet."""
        return key in self._running

    async def run(self, key: Hashable, work: Callable[[], R]) -> R:
        """Run a function under a key; after the timeout, ignore its result.

        Raises:
            SourceError: the function timed out, the previous one under this key is still running,
                or there are no threads left.
        """
        no_answer = f"no answer within {self._timeout:g} s"
        if key in self._running:
            raise SourceError(no_answer)
        thread = SerialThread("detached")
        done = thread.submit(work)
        thread.close()  # after the function returns, if ever
        self._running.add(key)

        def returned(done: asyncio.Future[R]) -> None:
            self._running.discard(key)
            done.exception()  # mark as retrieved, so that asyncio does not log it

        done.add_done_callback(returned)
        await asyncio.wait([done], timeout=self._timeout)
        if not done.done():
            raise SourceError(no_answer)
        self._running.discard(key)  # `returned` may not have run yet
        return done.result()
