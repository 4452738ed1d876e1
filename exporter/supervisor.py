"""Background tasks: one that fails ends the process, which would run degraded without it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


class Supervisor:
    """Runs background tasks and keeps the first exception that ended one. Made inside a loop.

    Attributes:
        failure: that exception; None while there is none.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = asyncio.Event()
        self.failure: BaseException | None = None

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run a coroutine in a task of its own, until it ends or `stop` is called."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.watch(task)
        return task

    def watch(self, task: asyncio.Task[None]) -> None:
        """Keep the exception that ends a task whose owner stops it."""
        task.add_done_callback(self._ended)

    def fail(self, error: BaseException) -> None:
        """Keep the exception that ended work which is not a task of its own."""
        if self.failure is None:
            self.failure = error
            self._failed.set()

    async def wait_for(self, event: asyncio.Event) -> None:
        """Wait for an event; raise what ended a background task before it was set."""
        waiting = [asyncio.ensure_future(each.wait()) for each in (event, self._failed)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in waiting:
                future.cancel()
        if self.failure:
            raise self.failure

    async def stop(self) -> None:
        """Cancel the tasks that `start` began, and wait for their end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self.fail(error)
