"""Background tasks: if one fails, the process exits instead of running degraded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TypeAlias

Spawn: TypeAlias = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]
"""Starts a background task, whose failure ends the exporter: `Supervisor.start`."""


class Supervisor:
    """Runs background tasks and stores the first exception of one, as `failure`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = asyncio.Event()
        self.failure: BaseException | None = None

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run a coroutine as a task until it ends or `stop` is called."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.watch(task)
        return task

    def watch(self, task: asyncio.Task[None]) -> None:
        """Store the exception of a task that `stop` does not cancel."""
        task.add_done_callback(self._ended)

    def fail(self, error: BaseException) -> None:
        """Store the exception of work that is not a task."""
        if self.failure is None:
            self.failure = error
            self._failed.set()

    async def wait_for(self, event: asyncio.Event) -> None:
        """Wait for an event; raise the exception of a background task that failed before."""
        waiting = [asyncio.ensure_future(each.wait()) for each in (event, self._failed)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in waiting:
                future.cancel()
        if self.failure:
            raise self.failure

    async def stop(self) -> None:
        """Cancel the tasks of `start` and wait until they end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self.fail(error)
