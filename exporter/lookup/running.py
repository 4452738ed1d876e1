"""A look-up from its start to its end, or to Ctrl-C: asks, and writes what comes, side by side."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import uvloop

from exporter.calls import ReferenceId
from exporter.config import Config
from exporter.lookup.asking import Asker
from exporter.lookup.line import CallName, Line

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def look_up(
    config: Config,
    calls: Mapping[CallName, ReferenceId],
    write: Callable[[Sequence[Line]], None],
    pausing: Callable[[str, Line, float], None],
) -> bool:
    """Ask for calls, each account at its own pace.

    Args:
        config: the accounts.
        calls: what to ask for.
        write: takes lines as they come, in a thread: it may block, and what it raises ends all.
        pausing: told of a pause: the account, why, and for how many seconds.

    Returns:
        False where a signal ended it: what had come by then is written.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_look_up(config, calls, write, pausing))


async def _look_up(
    config: Config,
    calls: Mapping[CallName, ReferenceId],
    write: Callable[[Sequence[Line]], None],
    pausing: Callable[[str, Line, float], None],
) -> bool:
    lines: asyncio.Queue[Line | None] = asyncio.Queue()
    askers = [
        Asker(
            account,
            [asked for (name, _), asked in calls.items() if name == account.name],
            timeout=config.polling.timeout,
            tell=lines.put_nowait,
            pausing=pausing,
        )
        for account in config.accounts
    ]
    asking = asyncio.create_task(_all(askers))
    writing = asyncio.create_task(_write(lines, write))
    writing.add_done_callback(lambda _: asking.cancel())
    with _ended_by_signals(asking):
        await asyncio.wait({asking})
        lines.put_nowait(None)
        await writing
    if asking.cancelled():
        return False
    asking.result()
    return True


async def _all(askers: Sequence[Asker]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for asker in askers:
            tasks.create_task(asker.run())


async def _write(
    lines: asyncio.Queue[Line | None], write: Callable[[Sequence[Line]], None]
) -> None:
    # In a thread: who reads the output slowly, or not at all, makes no request late.
    last = False
    while not last:
        batch = [await lines.get()]
        while not lines.empty():
            batch.append(lines.get_nowait())
        last = batch[-1] is None
        await asyncio.to_thread(write, [line for line in batch if line is not None])


@contextmanager
def _ended_by_signals(asking: asyncio.Task[None]) -> Iterator[None]:
    """Have a signal end the asking; a second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        if asking.done() or asking.cancelling():
            os._exit(1)
        asking.cancel()

    for number in _ENDING:
        loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        for number in _ENDING:
            loop.remove_signal_handler(number)
