"""The status page: what is going on now, for people."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import tzinfo
from hashlib import sha256
from typing import Any, Final
from urllib.parse import urlencode

import jinja2
from aiohttp import web
from markupsafe import Markup

import exporter
from exporter.calls import CallState, Result, Status
from exporter.web.i18n import DEFAULT, choose, load, local
from exporter.web.status import LINES, App, StatusView, Viewer, gather, lines

MAX_WAITING: Final = 32
"""Pages that may wait to be drawn."""

REFRESH: Final = 15
"""Seconds after which a browser asks again."""

LANGUAGES: Final = (DEFAULT, "vi")


class Template:
    """Makes the page of what is to be shown; total.

    Attributes:
        style_source: what a policy calls the one style: no other, and no script, is to run.
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
        self.style_source = f"'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'"
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
            view: what is to be shown.
            language: one of `LANGUAGES`.
            query: what the reader has chosen: `lang`, `refresh`.
            telemetry_path: where the metrics are.
            zone: the reader's; None for that of the process.
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
            link=lambda **chosen: _link(query, chosen),
            telemetry_path=telemetry_path,
        )


class StatusPage:
    """Answers `/`.

    Args:
        app: what is shown.
        telemetry_path: where the metrics are.
        viewer: tells who asks.
    """

    def __init__(
        self, app: App, telemetry_path: str, viewer: Callable[[web.Request], Viewer]
    ) -> None:
        self._app = app
        self._telemetry_path = telemetry_path
        self._viewer = viewer
        self._template = Template()
        self._drawing = asyncio.Lock()
        self._waiting = 0
        self._headers = {
            "Content-Security-Policy": "default-src 'none'; "
            f"style-src {self._template.style_source}; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "Cache-Control": "no-store",
            "Vary": "Accept-Language, Authorization",
        }

    async def answer(self, request: web.Request) -> web.Response:
        """Answer a request."""
        query = {}
        if (chosen := request.query.get("lang")) in LANGUAGES:
            query["lang"] = chosen
        if request.query.get("refresh") == "off":
            query["refresh"] = "off"
        accept = ",".join(request.headers.getall("Accept-Language", []))
        language = query.get("lang") or choose(accept, LANGUAGES)
        headers: dict[str, Any] = {**self._headers, "Content-Language": language}
        if "refresh" not in query:
            headers["Refresh"] = str(REFRESH)
        # In a thread, which the polls do not feel; one at a time, so that the others are free.
        viewer = self._viewer(request)
        if self._waiting >= MAX_WAITING:
            raise web.HTTPServiceUnavailable(text="try again later\n", headers={"Retry-After": "1"})
        self._waiting += 1
        try:
            page = await self._drawn(viewer, language, query)
        finally:
            self._waiting -= 1
        return web.Response(text=page, content_type="text/html", headers=headers)

    async def _drawn(self, viewer: Viewer, language: str, query: Mapping[str, str]) -> str:
        async with self._drawing:
            view = gather(self._app, viewer, time.time())
            return await asyncio.to_thread(
                self._template.render,
                view,
                language,
                query=query,
                telemetry_path=self._telemetry_path,
            )


def _link(query: Mapping[str, str], chosen: Mapping[str, str]) -> str:
    """Return the address of the page with something else chosen; "" takes a choice back."""
    changed = {name: value for name, value in sorted({**query, **chosen}.items()) if value}
    return f"?{urlencode(changed)}" if changed else "./"
