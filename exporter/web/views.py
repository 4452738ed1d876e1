"""The views of the exporter: metrics, probes, and the status page for people."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import tzinfo
from hashlib import sha256
from typing import Final
from urllib.parse import urlencode

import jinja2
from aiohttp import web
from markupsafe import Markup

import exporter
from exporter.calls import CallState, Result, Status
from exporter.metrics.exposition import (
    OPENMETRICS,
    TEXT,
    Exposition,
    accepts_gzip,
    compress,
    wants_openmetrics,
)
from exporter.web.connections import Limits
from exporter.web.i18n import LANGUAGES, choose, load, local
from exporter.web.status import LINES, App, StatusView, Viewer, gather, lines

REFRESH: Final = 15
"""Seconds after which a browser reloads the status page."""

# Compressing more than this takes long enough to be felt by the polls: it is done in a thread.
_INLINE: Final = 128 * 1024


class StatusTemplate:
    """Renders the status page.

    Attributes:
        policy: the `Content-Security-Policy` of the page: its own style, and nothing else.
    """

    def __init__(self) -> None:
        loader = jinja2.PackageLoader("exporter.web")
        environment = jinja2.Environment(
            loader=loader,
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        style, _, _ = loader.get_source(environment, "status.css")
        self.policy = (
            "default-src 'none'; "
            f"style-src 'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        environment.globals.update(
            style=Markup(style),  # noqa: S704 - of the package
            version=exporter.__version__,
            states=list(CallState),
            results=list(Result),
            ANSWERED=Status.ANSWERED,
            LINES=LINES,
            REFRESH=REFRESH,
        )
        self._page = environment.get_template("status.html")
        self._languages = {code: load(code) for code in LANGUAGES}

    def render(
        self,
        view: StatusView,
        language: str,
        *,
        query: Mapping[str, str],
        telemetry_path: str,
        zone: tzinfo | None = None,
    ) -> str:
        """Return the page.

        Args:
            view: what it shows.
            language: one of `LANGUAGES`.
            query: the parameters that are kept in its links: `lang`, `refresh`.
            telemetry_path: the path of the metrics.
            zone: of the times; None for that of the process.
        """
        words = self._languages[language]
        return self._page.render(
            view=view,
            words=words,
            t=words.say,
            number=words.number,
            duration=words.duration,
            at=lambda when: words.time(when, view.now, zone),
            iso=lambda when: local(when, zone).isoformat(timespec="seconds"),
            lines=lines,
            others=[other for other in self._languages.values() if other is not words],
            refreshing=query.get("refresh") != "off",
            link=lambda **changes: _link({**query, **changes}),
            telemetry_path=telemetry_path,
        )


def _link(query: Mapping[str, str]) -> str:
    """Return the address of the page with these parameters; empty ones are left out."""
    given = {name: value for name, value in sorted(query.items()) if value}
    return f"?{urlencode(given)}" if given else "./"


class Views:
    """Answers those who read.

    Args:
        app: the exporter that is shown.
        telemetry_path: the path of the metrics.
        viewer: tells who requests the status page.
        limits: of answers under way.
    """

    def __init__(
        self,
        app: App,
        telemetry_path: str,
        viewer: Callable[[web.Request], Viewer],
        limits: Limits,
    ) -> None:
        self._app = app
        self._telemetry_path = telemetry_path
        self._viewer = viewer
        self._limits = limits
        self._renderer = Exposition(app.metrics.registry)
        self._scrapes = 0
        self._template = StatusTemplate()
        self._rendering = asyncio.Lock()
        self._pages = 0

    def routes(self) -> list[web.RouteDef]:
        """Return the paths and their handlers."""
        return [
            web.get("/", self._status),
            web.get(self._telemetry_path, self._metrics),
            web.get("/-/healthy", self._healthy),
            web.get("/-/ready", self._ready),
        ]

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        limit = self._limits.scrapes
        if self._scrapes >= limit:
            return web.Response(
                status=503,
                text=f"Limit of concurrent requests reached ({limit}), try again later.\n",
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
        body = await self._renderer.render(openmetrics=openmetrics)
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

    async def _status(self, request: web.Request) -> web.Response:
        query = {}
        if (chosen := request.query.get("lang")) in LANGUAGES:
            query["lang"] = chosen
        if request.query.get("refresh") == "off":
            query["refresh"] = "off"
        accept = ",".join(request.headers.getall("Accept-Language", []))
        language = query.get("lang") or choose(accept)
        headers = {
            "Content-Security-Policy": self._template.policy,
            "Cache-Control": "no-store",
            "Content-Language": language,
            "Vary": "Accept-Language, Authorization",
        }
        if "refresh" not in query:
            headers["Refresh"] = str(REFRESH)
        if self._pages >= self._limits.pages:
            raise web.HTTPServiceUnavailable(text="try again later\n", headers={"Retry-After": "1"})
        self._pages += 1
        try:
            # In a thread, so that polls are not delayed; one at a time, to leave threads to others.
            async with self._rendering:
                page = await asyncio.to_thread(
                    self._template.render,
                    gather(self._app, self._viewer(request), time.time()),
                    language,
                    query=query,
                    telemetry_path=self._telemetry_path,
                )
        finally:
            self._pages -= 1
        return web.Response(text=page, content_type="text/html", headers=headers)
