"""Handlers of the signals that stop or reload the process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def handled_signals(
    stop: Callable[[], object], reload: Callable[[], object] | None = None
) -> Iterator[None]:
    """Call `stop` on SIGTERM and SIGINT while the block runs; exit at once on a second signal.

    Where nohup(1) ignores SIGHUP, it does not stop the process.

    Args:
        stop: called once.
        reload: called on SIGHUP; without it, SIGHUP calls `stop`.
    """
    stopping = False

    def stop_once() -> None:
        nonlocal stopping
        if stopping:
            # Nothing is lost: uncommitted results are polled again after the next start.
            os._exit(1)
        stopping = True
        stop()

    loop = asyncio.get_running_loop()
    handlers: dict[int, Callable[[], object]] = {
        signal.SIGTERM: stop_once,
        signal.SIGINT: stop_once,
    }
    if reload or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        handlers[signal.SIGHUP] = reload or stop_once
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
