"""A thread for work that blocks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

from exporter.errors import SourceError

R = TypeVar("R")


class Worker:
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
