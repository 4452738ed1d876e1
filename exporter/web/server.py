"""The HTTP server: its life, and the way of a request through it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog
from aiohttp import HttpVersion10, web

from exporter.errors import ConfigError, ExporterError, SourceError
from exporter.sources.configuration import ConfigFile
from exporter.sources.file_watcher import INTERVAL
from exporter.threads import DetachedThreads
from exporter.web.access import PROBES, Access, Passwords
from exporter.web.api import PREFIX as API_PREFIX
from exporter.web.api import Api, problem_middleware, token_of
from exporter.web.callback import PATH as CALLBACK_PATH
from exporter.web.callback import Callback
from exporter.web.connections import Connection, Connections, Limits
from exporter.web.request_body import CallsReader
from exporter.web.sockets import ListenAddress, listen, systemd_sockets, url_of
from exporter.web.status import App, Viewer
from exporter.web.views import Views
from exporter.web.web_config import WebConfig

# Seconds that answers under way may still take when the exporter ends.
_DRAIN_TIMEOUT: Final = 1.0
# Seconds that reading the web configuration may take.
_LOAD_TIMEOUT: Final = 30.0
_WEB_CONFIG: Final = "web configuration"
_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Server": "esms-exporter"}

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WebOptions:
    """The options of the HTTP server on the command line.

    Attributes:
        addresses: where to listen.
        telemetry_path: the path of the metrics.
        config: the web configuration file; None for plain HTTP without users.
        systemd_socket: listen on the sockets of systemd instead.
        open_probes: answer `/-/healthy` and `/-/ready` without a password.
        route_prefix: what all paths begin with, such as `/esms`.
        external_path: what they begin with for clients, where a proxy changes it.
    """

    addresses: Sequence[ListenAddress] = ()
    telemetry_path: str = "/metrics"
    config: ConfigFile[WebConfig] | None = None
    systemd_socket: bool = False
    open_probes: bool = False
    route_prefix: str = ""
    external_path: str = ""


class WebServer:
    """Serves the metrics, the probes, the status page, the API and the callback.

    Args:
        app: the exporter that is served.
        options: where, and to whom.
        limits: what clients may cost.
        passwords: checks those of users.
    """

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
        prefix = options.route_prefix
        self._access = Access(
            PROBES if options.open_probes else (),
            (f"{API_PREFIX}/", f"{CALLBACK_PATH}/"),
            prefix,
            passwords or Passwords(max_checks=limits.password_checks),
            time.monotonic,
        )
        application = web.Application(
            middlewares=[_tracked, problem_middleware(prefix), self._guarded]
        )
        routes = [
            *Views(app, options.telemetry_path, self._viewer, limits).routes(),
            web.post("/-/reload", self._reload),
            *Api(app, CallsReader(limits.body), options.external_path).routes(),
            *Callback(app).routes(),
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
        self.connections = Connections(
            self._server, lambda: self._access.config.tls, _HEADERS, app.metrics, limits
        )
        self._listeners: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._threads = DetachedThreads(_LOAD_TIMEOUT)
        self._unread = False  # the file system of the web configuration has not answered
        self._web_lock = asyncio.Lock()
        app.on_reload(self._reload_web_config)

    async def start(self) -> list[str]:
        """Listen.

        Returns:
            The addresses with their real ports, such as `http://127.0.0.1:10375`.

        Raises:
            ConfigError: the web configuration file cannot be used.
            SourceError: its file system does not answer.
            ListenError: an address cannot be listened on.
        """
        if self._config is not None:
            self._configure(await self._threads.run(self._config, self._config.load))
            self._start_task(self._watch_web_config())
        await self._runner.setup()
        options = self._options
        if options.systemd_socket:
            self._listeners = systemd_sockets()
        else:
            self._listeners = await asyncio.to_thread(listen, options.addresses)
        for listener in self._listeners:
            listener.setblocking(False)
            self._start_task(self.connections.accept(listener))
        scheme = "https" if self._access.config.tls else "http"
        return [url_of(listener, scheme) for listener in self._listeners]

    async def stop(self) -> None:
        """Close the sockets and the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listener in self._listeners:
            listener.close()
        await self._runner.cleanup()
        self.connections.close()
        self._threads.close()
        self._access.close()

    def _start_task(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        self._app.supervisor.watch(task)

    def _server(self) -> web.Server:
        assert self._runner.server is not None  # noqa: S101 - there is one since the start
        return self._runner.server

    # Reload.

    async def _reload_web_config(self, *, changed: bool = True) -> None:
        if (config := self._config) is None:
            return
        # One by one, so that a late one does not undo a newer one.
        async with self._web_lock:
            if not changed and self._threads.hangs(config):
                return  # already reported
            try:
                changed = changed or self._unread
                if changed or await self._threads.run(config, config.changed):
                    self._configure(await self._threads.run(config, config.load))
                    self._unread = False
                    self._app.config_status.loaded(_WEB_CONFIG)
                    _log.info("web configuration reloaded")
            except (ConfigError, SourceError) as error:
                # Where there was no answer, no change may be seen later.
                self._unread = isinstance(error, SourceError)
                self._app.config_status.failed(_WEB_CONFIG, str(error))
                _log.error("web configuration not reloaded", problems=str(error))
                raise

    async def _watch_web_config(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            with suppress(ConfigError, SourceError):  # logged and counted where it happened
                await self._reload_web_config(changed=False)

    def _configure(self, config: WebConfig) -> None:
        self._access.configure(config)
        tls = config.tls
        self._app.metrics.tls_expiry.set(tls.expires_at if tls else 0.0)
        if tls and (warning := tls.expiry_warning(time.time())):
            _log.warning(warning)

    # Requests.

    @web.middleware
    async def _guarded(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        return await self._access.answer(request, handler)

    def _viewer(self, request: web.Request) -> Viewer:
        if self._access.config.users:
            return Viewer(known=True, accounts=None)  # else access was denied before
        config = self._app.config
        if config is None or (token := token_of(config.watch.api, request)) is None:
            return Viewer()
        accounts = None if token.accounts is None else frozenset(token.accounts)
        return Viewer(known=True, accounts=accounts)

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(_HEADERS)
        response.headers.update(self._access.config.headers)
        if not request.content.is_eof():
            # Without the rest of the body, no further request can be told from it.
            response.headers["Connection"] = "close"
            response.force_close()

    async def _reload(self, _request: web.Request) -> web.Response:
        try:
            await self._app.reload()
        except ExporterError as error:
            status = 400 if isinstance(error, ConfigError) else 500
            return web.Response(status=status, text=f"{error}\n")
        return web.Response(text="configuration reloaded\n")


def _redirect(prefix: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Return a handler that redirects to the page, relative: a proxy may serve another path."""

    async def redirect(request: web.Request) -> web.StreamResponse:
        path = prefix if request.path == "/" else prefix[prefix.rindex("/") :]
        raise web.HTTPFound(f".{path}/")

    return redirect


async def _await_access(_request: web.Request) -> None:
    """Send no `100 Continue` yet: the handler that reads the body does, after its token check."""


@web.middleware
async def _tracked(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Tell the connection when it has a request and when no more."""
    if request.version < HttpVersion10:
        raise web.HTTPVersionNotSupported
    connection = request.protocol
    if not isinstance(connection, Connection):
        return await handler(request)
    connection.begin(request.content)
    try:
        return await handler(request)
    finally:
        connection.end()
