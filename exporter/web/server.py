"""The HTTP server: start, stop, reload, and the handling of requests."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import quote, urlencode

import structlog
from aiohttp import HttpVersion10, web
from aiohttp.typedefs import Handler
from yarl import URL

from exporter.app import App
from exporter.errors import ConfigError, ExporterError, SourceError
from exporter.metrics.exposition import (
    OPENMETRICS,
    TEXT,
    Exposition,
    accepts_gzip,
    compress,
    wants_openmetrics,
)
from exporter.sources.configuration import ConfigFile
from exporter.sources.file_watcher import INTERVAL
from exporter.threads import DetachedThreads
from exporter.web.access import BEARER, Passwords, Slots, TokenBucket, configuration
from exporter.web.api import MAX_BODY, Api, call_details, find_named, token_of
from exporter.web.api import PREFIX as API_PREFIX
from exporter.web.callback import PATH as CALLBACK_PATH
from exporter.web.callback import callback_route
from exporter.web.connections import Connection, Connections, Limits
from exporter.web.sockets import ListenAddress, listen, systemd_sockets, url_of
from exporter.web.status_page import (
    LANGUAGES,
    REFRESH,
    CallView,
    StatusTemplate,
    StatusView,
    Viewer,
    build_status_view,
    choose_language,
)
from exporter.web.web_config import WebConfig

# Seconds for open responses to complete when the exporter stops.
_DRAIN_TIMEOUT: Final = 1.0
# Time limit in seconds for reading the web configuration.
_LOAD_TIMEOUT: Final = 30.0
_WEB_CONFIG: Final = "web configuration"
_PROBES: Final = ("/-/healthy", "/-/ready")
_CALLS: Final = "/calls"
_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Server": "esms-exporter"}

# Larger bodies are compressed in a thread, because compressing them would delay polls.
_INLINE: Final = 128 * 1024

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WebOptions:
    """Command-line options of the HTTP server."""

    addresses: Sequence[ListenAddress] = ()
    telemetry_path: str = "/metrics"
    config: ConfigFile[WebConfig] | None = None  # None for plain HTTP without authentication
    systemd_socket: bool = False  # listen on systemd's sockets instead of `addresses`
    open_probes: bool = False  # serve the probes without authentication
    route_prefix: str = ""  # prefix of all paths, such as `/esms`
    external_path: str = ""  # prefix of the paths for clients, if a proxy changes it


class WebServer:
    """Serves the metrics, the probes, the status page, the API and the callback."""

    def __init__(
        self,
        app: App,
        options: WebOptions,
        limits: Limits = Limits(),  # noqa: B008 - it is immutable
        passwords: Passwords | None = None,
    ) -> None:
        self._app = app
        self._options = options
        self._config = options.config
        self._exposition = Exposition(app.metrics.registry)
        self._scrapes = Slots(limits.scrapes)
        self._template = StatusTemplate(options.telemetry_path)
        self._pages = Slots(limits.pages)
        self._rendering = asyncio.Lock()
        self._passwords = passwords or Passwords(max_checks=limits.password_checks)
        self._web_config = WebConfig()
        self._bucket = TokenBucket(self._web_config.rate_limit)
        prefix = options.route_prefix
        api = Api(app, limits.body, prefix, options.external_path)
        application = web.Application(
            middlewares=[_tracked, api.problems, self._guarded], client_max_size=MAX_BODY
        )
        routes = [
            web.get("/", self._status),
            web.get(_CALLS, self._search),
            web.get(f"{_CALLS}/{{account:[^/]+}}/{{reference_id:[^/]+}}", self._call),
            web.get(options.telemetry_path, self._metrics),
            web.get("/-/healthy", self._healthy),
            web.get("/-/ready", self._ready),
            web.post("/-/reload", self._reload),
            *api.routes(),
            callback_route(app),
        ]
        routes = [web.RouteDef(r.method, prefix + r.path, r.handler, r.kwargs) for r in routes]
        if prefix:
            routes += [web.get(path, _redirect(prefix)) for path in ("/", prefix)]
        for route in routes:
            route.kwargs["expect_handler"] = _await_access
        application.add_routes(routes)
        application.on_response_prepare.append(self._add_headers)
        self._runner = web.AppRunner(
            application, access_log=None, handle_signals=False, shutdown_timeout=_DRAIN_TIMEOUT
        )
        self.connections = Connections(_HEADERS, app.metrics, limits)
        self._listeners: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._threads = DetachedThreads(_LOAD_TIMEOUT)
        self._unread = False  # the last attempt to read the web configuration timed out
        self._web_lock = asyncio.Lock()
        app.on_reload(self._reload_web_config)

    async def start(self) -> list[str]:
        """Start to listen, and return the URLs with their real ports.

        Raises:
            ConfigError: the web configuration file is invalid.
            SourceError: its file system does not respond.
            ExporterError: an address is not available.
        """
        if self._config is not None:
            self._configure(await self._threads.run(self._config, self._config.load))
            self._start_task(self._watch_web_config())
        await self._runner.setup()
        assert self._runner.server is not None  # noqa: S101 - since the set-up
        if self._options.systemd_socket:
            self._listeners = systemd_sockets()
        else:
            self._listeners = await asyncio.to_thread(listen, self._options.addresses)
        for listener in self._listeners:
            listener.setblocking(False)
            self._start_task(self.connections.accept(listener, self._runner.server))
        scheme = "https" if self._web_config.tls_server_config else "http"
        return [url_of(listener, scheme) for listener in self._listeners]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listener in self._listeners:
            listener.close()
        await self._runner.cleanup()
        self.connections.close()
        self._passwords.close()

    def _start_task(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        self._app.supervisor.watch(task)

    # Reload.

    async def _reload_web_config(self, *, changed: bool = True) -> None:
        if (config := self._config) is None:
            return
        # One at a time, so that a slow reload does not overwrite a newer one.
        async with self._web_lock:
            if not changed and self._threads.hangs(config):
                return  # already reported
            try:
                if changed or self._unread or await self._threads.run(config, config.changed):
                    self._configure(await self._threads.run(config, config.load))
                    self._unread = False
                    self._app.config_status.problems.pop(_WEB_CONFIG, None)
                    _log.info("web configuration reloaded")
            except (ConfigError, SourceError) as error:
                # A change during the timeout would go unnoticed: read the file again.
                self._unread = isinstance(error, SourceError)
                self._app.config_status.problems[_WEB_CONFIG] = str(error)
                _log.error("web configuration reload failed", problems=str(error))
                raise

    async def _watch_web_config(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            with suppress(ConfigError, SourceError):  # already logged and counted
                await self._reload_web_config(changed=False)

    def _configure(self, config: WebConfig) -> None:
        self._web_config = config
        if self._bucket.limit != config.rate_limit:
            self._bucket = TokenBucket(config.rate_limit)
        tls = config.tls_server_config
        self.connections.configure(tls)
        self._app.metrics.tls_expiry.set(tls.expires_at if tls else 0.0)
        if tls and (warning := tls.expiry_warning(time.time())):
            _log.warning("TLS certificate needs renewal", problem=warning)

    # Requests.

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        # The path as the router resolved it, so that no other spelling bypasses the checks.
        resource = request.match_info.route.resource
        path = resource.canonical.removeprefix(self._options.route_prefix) if resource else ""
        if path in _PROBES and self._options.open_probes:
            return await handler(request)
        self._bucket.take()
        users, own = self._web_config.basic_auth_users, (f"{API_PREFIX}/", f"{CALLBACK_PATH}/")
        for_tokens = f"{path}/".startswith(f"{_CALLS}/") and token_of(self._app, request)
        if users and not for_tokens and not path.startswith(own):
            await self._passwords.authenticate(users, request)
        return await handler(request)

    def _viewer(self, request: web.Request) -> Viewer:
        if token := token_of(self._app, request):
            return Viewer(token.accounts)
        if self._web_config.basic_auth_users:
            return Viewer(None)  # `_guarded` has checked the password
        return Viewer()

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(_HEADERS)
        response.headers.update(self._web_config.http_server_config.headers.items())
        if not request.content.is_eof():
            # After an unread body, the start of the next request cannot be found.
            response.headers["Connection"] = "close"
            response.force_close()

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        async with self._scrapes:
            openmetrics = wants_openmetrics(",".join(request.headers.getall("Accept", [])))
            body = await self._exposition.render(openmetrics=openmetrics)
            headers = {
                "Content-Type": OPENMETRICS if openmetrics else TEXT,
                "Vary": "Accept, Accept-Encoding",
            }
            if accepts_gzip(",".join(request.headers.getall("Accept-Encoding", []))):
                headers["Content-Encoding"] = "gzip"
                inline = len(body) < _INLINE
                body = compress(body) if inline else await asyncio.to_thread(compress, body)
            response = web.Response(headers=headers, body=body)
            # Hold the slot while the response is sent, so that slow readers count.
            with suppress(ConnectionError):  # the scraper disconnected
                await response.prepare(request)
                await response.write_eof()
            return response

    # Pages.

    async def _page(
        self, request: web.Request, view: Callable[[], StatusView | CallView], status: int = 200
    ) -> web.Response:
        language, query = _parameters(request)
        # One page at a time, so that other threads stay free.
        async with self._pages, self._rendering:
            page = await asyncio.to_thread(self._template.render, view(), language, query)
        headers = {
            "Content-Security-Policy": self._template.policy,
            "Cache-Control": "no-store",
            "Content-Language": language,
            "Vary": "Accept-Language, Authorization",
        }
        return web.Response(text=page, status=status, content_type="text/html", headers=headers)

    async def _status(self, request: web.Request) -> web.Response:
        viewer = self._viewer(request)
        response = await self._page(
            request, lambda: build_status_view(self._app, viewer, time.time())
        )
        if request.query.get("refresh") != "off":
            response.headers["Refresh"] = str(REFRESH)
        return response

    async def _call(self, request: web.Request) -> web.Response:
        configuration(self._app)  # raises while the exporter starts
        app, viewer = self._app, self._viewer(request)
        accounts = viewer.accounts_of(app)
        call = None
        with suppress(ValueError):  # not an id
            if found := await find_named(app, accounts, request):
                call = call_details(app, *found)
        status = 200 if call else 404 if viewer.authenticated else 401
        response = await self._page(
            request, lambda: CallView(time.time(), viewer, accounts, call), status
        )
        if status == 401:
            response.headers["WWW-Authenticate"] = BEARER
        return response

    async def _search(self, request: web.Request) -> web.Response:
        """Redirect from the search box to the page of the call; relatively, as `_redirect`."""
        _, kept = _parameters(request)
        names = (request.query.get(name, "").strip() for name in ("account", "reference_id"))
        parts = [quote(name, safe="", errors="replace") for name in names]
        path = f".{_CALLS}/{'/'.join(parts)}" if all(parts) else "./"
        query = f"?{urlencode(kept)}" if kept else ""
        raise web.HTTPSeeOther(URL(path + query, encoded=True))

    async def _healthy(self, _request: web.Request) -> web.Response:
        return web.Response(text="esms-exporter is healthy.\n")

    async def _ready(self, _request: web.Request) -> web.Response:
        if reasons := self._app.not_ready():
            return web.Response(status=503, text="".join(f"{reason}\n" for reason in reasons))
        return web.Response(text="esms-exporter is ready.\n")

    async def _reload(self, _request: web.Request) -> web.Response:
        try:
            await self._app.reload()
        except ExporterError as error:
            status = 400 if isinstance(error, ConfigError) else 500
            return web.Response(status=status, text=f"{error}\n")
        return web.Response(text="configuration reloaded\n")


def _parameters(request: web.Request) -> tuple[str, dict[str, str]]:
    """Return the language of a page, and the parameters that its links keep."""
    kept = {"refresh": "off"} if request.query.get("refresh") == "off" else {}
    if (language := request.query.get("lang")) in LANGUAGES:
        return language, {**kept, "lang": language}
    return choose_language(",".join(request.headers.getall("Accept-Language", []))), kept


def _redirect(prefix: str) -> Handler:
    """Return a handler with a relative redirect to the page: a proxy may change the path."""

    async def redirect(request: web.Request) -> web.StreamResponse:
        path = prefix if request.path == "/" else prefix[prefix.rindex("/") :]
        raise web.HTTPFound(f".{path}/")

    return redirect


async def _await_access(_request: web.Request) -> None:
    """Defer `100 Continue` to the handler, which checks the token before it reads the body."""


@web.middleware
async def _tracked(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Mark the connection as busy during a request."""
    if request.version < HttpVersion10:
        raise web.HTTPVersionNotSupported
    connection = cast("Connection", request.protocol)
    connection.begin(request.content)
    try:
        return await handler(request)
    finally:
        connection.end()
