"""The life of the process: start, wait for a reason to stop, drain, exit code."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import structlog

import exporter
from exporter.app import App, gc_paused
from exporter.config import Config
from exporter.errors import ExporterError
from exporter.systemd import Notifier
from exporter.web.server import WebOptions, WebServer

_log = structlog.get_logger(__name__)


def limit_process() -> None:
    """Have a crash write no image of the memory, which holds keys, and open files up to the limit.

    The usual limit of 1024 is there for programs that use select(2); this one does not.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Stop:
    """Turns signals into events: SIGTERM and SIGINT stop, a second one at once; SIGHUP reloads."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.reload = asyncio.Event()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Take the signals for as long as the block runs."""
        loop = asyncio.get_running_loop()
        ours = {
            signal.SIGTERM: self._stop,
            signal.SIGINT: self._stop,
            signal.SIGHUP: self.reload.set,
        }
        for number, callback in ours.items():
            loop.add_signal_handler(number, callback)
        try:
            yield
        finally:
            for number in ours:
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        if self.stopping.is_set():
            # What is committed stays; the rest is found out again after the next start.
            os._exit(1)
        self.stopping.set()


async def serve(
    load: Callable[[], Config],
    web: WebOptions,
    *,
    changed: Callable[[], bool] | None = None,
    beside: Callable[[App, Sequence[str]], AsyncIterator[None]] | None = None,
) -> None:
    """Run the exporter until it is told to stop.

    Args:
        load: reads the configuration.
        web: where to listen, and to whom.
        changed: tells whether the configuration is to be read again; None never to ask.
        beside: an asynchronous context to run in once everything is up, such as the demo's calls.

    Raises:
        ExporterError: it could not start.
    """
    stop = Stop()
    service = App(load, changed)
    server = WebServer(service, web)
    async with stop.listening(), _telling(service) as notifier:
        try:
            listening = await _unless_stopped(_start(service, server), stop)
            if listening is not None:
                notifier.ready(_summary(service))
                async with AsyncExitStack() as stack:
                    if beside:
                        running = asynccontextmanager(beside)(service, listening)
                        await stack.enter_async_context(running)
                    await _until_stopped(service, server, stop, notifier)
            _log.info("stopping")
        finally:
            notifier.stopping()
            await service.stop()
            await server.stop()
    _log.info("stopped")


@asynccontextmanager
async def _telling(service: App) -> AsyncIterator[Notifier]:
    """Tell systemd how things are while the block runs: from the start to the end of the drain."""
    notifier = Notifier()
    beat = asyncio.create_task(notifier.beat(partial(_summary, service)))
    service.guard(beat)
    try:
        yield notifier
    finally:
        beat.cancel()
        notifier.close()


async def _unless_stopped(
    start: Coroutine[Any, Any, list[str]], stop: Stop
) -> list[str] | None:  # Any: what it yields and is sent is asyncio's
    """Return what a start returns; cancel it and return None when told to stop before."""
    starting = asyncio.create_task(start)
    stopped = asyncio.create_task(stop.stopping.wait())
    await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if starting.done():
        return starting.result()
    starting.cancel()
    await asyncio.wait([starting])
    return None


async def _start(service: App, server: WebServer) -> list[str]:
    with gc_paused():
        await service.open()
        listening = await server.start()
        _log.info("listening", addresses=" ".join(listening), version=exporter.__version__)
        await service.start()
        # What is there now stays: the collector need not look at it ever.
        gc.freeze()
    _log.info("ready", accounts=len(service.accounts), calls=service.calls.count)
    return listening


def _summary(service: App) -> str:
    """Return in a line how the exporter is."""
    if reasons := service.not_ready():
        return "; ".join(reasons)
    bad = "; configuration not reloaded" if service.config_status.problems else ""
    return f"{service.calls.count} calls of {len(service.accounts)} accounts watched{bad}"


async def _until_stopped(service: App, server: WebServer, stop: Stop, notifier: Notifier) -> None:
    reloads = asyncio.create_task(_reload_on_signal(service, server, stop, notifier))
    stopped = asyncio.create_task(stop.stopping.wait())
    try:
        done, _ = await asyncio.wait(
            (stopped, reloads, service.failed), return_when=asyncio.FIRST_COMPLETED
        )
        for task in done - {stopped}:
            task.result()
    finally:
        for task in (reloads, stopped):
            task.cancel()


async def _reload_on_signal(
    service: App, server: WebServer, stop: Stop, notifier: Notifier
) -> None:
    while True:
        await stop.reload.wait()
        stop.reload.clear()
        notifier.reloading()
        try:
            await server.reload()
        except ExporterError:
            pass  # logged and counted where it happened
        finally:
            notifier.ready(_summary(service))
