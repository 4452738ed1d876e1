"""A time-out for many requests with one timer."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Self


class Deadline:
    """Ends a block of one task when its time is up; made by `Deadlines.begin`.

    Raises:
        TimeoutError: from the block, whose task was cancelled for that.
    """

    __slots__ = ("_expired", "task", "when")

    def __init__(self, task: asyncio.Task[object] | None, when: float) -> None:
        self.task = task  # None once the block has ended
        self._expired = False
        self.when = when

    def expire(self) -> None:
        """End the block."""
        if self.task is not None:
            self._expired = True
            self.task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self.task = self.task, None
        # As in asyncio.timeout: where somebody else has cancelled the task too, it stays cancelled.
        if task and self._expired and task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise TimeoutError


class Deadlines:
    """Deadlines that all lie equally far ahead, so that the oldest is always the next.

    aiohttp's own time-out sets a timer for each request, which is a tenth of a request's cost.

    Args:
        seconds: how far.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._running: deque[Deadline] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> Deadline:
        """Return the deadline of a block that begins now, in the current task."""
        running = self._running
        while running and running[0].task is None:
            running.popleft()
        # Without the loop, it would be looked up, which costs more than all the rest here.
        deadline = Deadline(asyncio.current_task(self._loop), self._loop.time() + self._seconds)
        running.append(deadline)
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._sweep)
        return deadline

    def close(self) -> None:
        """Stop the timer."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        now, running = self._loop.time(), self._running
        while running and (running[0].task is None or running[0].when <= now):
            running.popleft().expire()
        self._timer = None
        if running:
            wait = max(0.001, running[0].when - now)
            self._timer = self._loop.call_later(wait, self._sweep)
