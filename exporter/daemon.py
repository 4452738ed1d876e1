"""The process: starts the exporter and its web server, waits for a signal, shuts down."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import structlog

import exporter
from exporter.app import App, gc_paused
from exporter.errors import ExporterError
from exporter.signals import handled_signals
from exporter.systemd import Notifier
from exporter.web.server import WebOptions, WebServer

_log = structlog.get_logger(__name__)


class Daemon:
    """The exporter as a process. Create it inside the event loop.

    After the start, calls `on_ready` with the URLs of the web server.
    """

    def __init__(
        self,
        app: App,
        web: WebOptions,
        on_ready: Callable[[Sequence[str]], None] = lambda _: None,
    ) -> None:
        self._app = app
        self._server = WebServer(app, web)
        self._on_ready = on_ready
        self._notifier = Notifier()
        self._stop_requested = asyncio.Event()
        self._reload_requested = asyncio.Event()

    async def run(self) -> None:
        """Run until a signal to stop; raise an `ExporterError` if the start fails."""
        with handled_signals(self._stop_requested.set, self._reload_requested.set):
            async with self._watchdog():
                try:
                    if (addresses := await self._start_unless_stopped()) is not None:
                        await self._main_loop(addresses)
                    _log.info("stopping")
                finally:
                    await self._shut_down()
        _log.info("stopped")

    async def _start_unless_stopped(self) -> list[str] | None:
        """Start; return the listening addresses, or None after a signal to stop."""
        starting = asyncio.create_task(self._start_up())
        stopped = asyncio.create_task(self._stop_requested.wait())
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if starting.done():
            return starting.result()
        starting.cancel()
        await asyncio.wait([starting])
        return None

    async def _start_up(self) -> list[str]:
        app = self._app
        with gc_paused():
            await app.open()
            addresses = await self._server.start()
            _log.info("listening", addresses=" ".join(addresses), version=exporter.__version__)
            await app.start()
            # Most objects created so far are permanent: exclude them from collections.
            gc.freeze()
        _log.info("ready", accounts=len(app.accounts), calls=app.calls.count)
        return addresses

    async def _main_loop(self, addresses: Sequence[str]) -> None:
        self._notifier.ready(self._status())
        self._on_ready(addresses)
        reloading = asyncio.create_task(self._reload_on_signal())
        self._app.supervisor.watch(reloading)
        try:
            await self._app.supervisor.wait_for(self._stop_requested)
        finally:
            reloading.cancel()

    async def _shut_down(self) -> None:
        self._notifier.stopping()
        await self._app.stop()
        await self._server.stop()

    async def _reload_on_signal(self) -> None:
        while True:
            await self._reload_requested.wait()
            self._reload_requested.clear()
            self._notifier.reloading()
            try:
                with suppress(ExporterError):  # logged and counted by `reload`
                    await self._app.reload()
            finally:
                self._notifier.ready(self._status())

    @asynccontextmanager
    async def _watchdog(self) -> AsyncIterator[None]:
        """Send heartbeats to systemd while the block runs."""
        beat = asyncio.create_task(self._notifier.beat(self._status))
        self._app.supervisor.watch(beat)
        try:
            yield
        finally:
            beat.cancel()
            self._notifier.close()

    def _status(self) -> str:
        """Return the state of the exporter as one line."""
        app = self._app
        if reasons := app.not_ready():
            return "; ".join(reasons)
        bad = "; configuration reload failed" if app.config_status.problems else ""
        return f"{app.calls.count} calls of {len(app.accounts)} accounts watched{bad}"
