"""What is shown of the exporter: metrics, probes, and the page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from aiohttp import web

from exporter.metrics.exposition import (
    OPENMETRICS,
    TEXT,
    Renderer,
    accepts_gzip,
    compress,
    wants_openmetrics,
)
from exporter.web.status import App, Viewer
from exporter.web.status_page import StatusPage

MAX_SCRAPES: Final = 100
"""Answers of metrics under way at once."""

# Compressing more than this takes long enough to be felt by the polls: it is done in a thread.
_INLINE: Final = 128 * 1024


class Pages:
    """Answers those who look.

    Args:
        app: what is shown.
        telemetry_path: where the metrics are.
        viewer: tells who asks for the status page.
    """

    def __init__(
        self, app: App, telemetry_path: str, viewer: Callable[[web.Request], Viewer]
    ) -> None:
        self._app = app
        self._telemetry_path = telemetry_path
        self._renderer = Renderer()
        self._scrapes = 0
        self._status_page = StatusPage(app, telemetry_path, viewer)

    def routes(self) -> list[web.RouteDef]:
        """Return the paths and their handlers."""
        return [
            web.get("/", self._status_page.answer),
            web.get(self._telemetry_path, self._metrics),
            web.get("/-/healthy", self._healthy),
            web.get("/-/ready", self._ready),
        ]

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        if self._scrapes >= MAX_SCRAPES:
            return web.Response(
                status=503,
                text=f"Limit of concurrent requests reached ({MAX_SCRAPES}), try again later.\n",
                headers={"Retry-After": "1"},
            )
        self._scrapes += 1
        try:
            response = await self._exposition(request)
            # Here, so that an answer that waits for its reader counts.
            with suppress(ConnectionError):  # the scraper is gone
                await response.prepare(request)
                await response.write_eof()
            return response
        finally:
            self._scrapes -= 1

    async def _exposition(self, request: web.Request) -> web.Response:
        openmetrics = wants_openmetrics(",".join(request.headers.getall("Accept", [])))
        body = self._renderer.render(self._app.families(), openmetrics=openmetrics)
        headers = {
            "Content-Type": OPENMETRICS if openmetrics else TEXT,
            "Vary": "Accept, Accept-Encoding",
        }
        if accepts_gzip(",".join(request.headers.getall("Accept-Encoding", []))):
            headers["Content-Encoding"] = "gzip"
            inline = len(body) < _INLINE
            body = compress(body) if inline else await asyncio.to_thread(compress, body)
        return web.Response(headers=headers, body=body)

    async def _healthy(self, _request: web.Request) -> web.Response:
        return web.Response(text="esms-exporter is healthy.\n")

    async def _ready(self, _request: web.Request) -> web.Response:
        if reasons := self._app.not_ready():
            return web.Response(status=503, text="".join(f"{reason}\n" for reason in reasons))
        return web.Response(text="esms-exporter is ready.\n")
