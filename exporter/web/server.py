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

from exporter.errors import ConfigError, ExporterError, Problem, SourceError
from exporter.sources.configuration import ConfigFile
from exporter.sources.file_watcher import INTERVAL
from exporter.threads import DetachedThreads
from exporter.web.access import PROBES, Access
from exporter.web.api import PREFIX as API_PREFIX
from exporter.web.api import Api, as_problems, token_of
from exporter.web.callback import PATH as CALLBACK_PATH
from exporter.web.callback import Callback
from exporter.web.connections import Connection, Connections
from exporter.web.sockets import ListenAddress, listen, systemd_sockets, url_of
from exporter.web.status import App, Viewer
from exporter.web.views import Pages
from exporter.web.web_config import WebConfig

# Seconds that answers under way may still take when the exporter ends.
_DRAIN: Final = 1.0
# Seconds that reading the web configuration may take.
_WEB_LOAD_TIMEOUT: Final = 30.0
_WEB_CONFIG: Final = "web configuration"
_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Server": "esms-exporter"}

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WebOptions:
    """What the command line says of the HTTP server.

    Attributes:
        addresses: where to listen.
        telemetry_path: where the metrics are.
        config: the web configuration file; None for plain HTTP without users.
        systemd_socket: listen on the sockets of systemd instead.
        open_probes: let `/-/healthy` and `/-/ready` be asked without a password.
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
    """Serves the metrics, the probes, the API and the page.

    Args:
        app: what is shown.
        options: where, and to whom.
    """

    def __init__(self, app: App, options: WebOptions) -> None:
        self._app = app
        self._options = options
        self._config = options.config
        prefix = options.route_prefix
        self._access = Access(
            PROBES if options.open_probes else (),
            (f"{API_PREFIX}/", f"{CALLBACK_PATH}/"),
            prefix,
            time.monotonic,
        )
        application = web.Application(
            client_max_size=64 * 1024, middlewares=[_tracked, as_problems(prefix), self._guarded]
        )
        routes = [
            *Pages(app, options.telemetry_path, self._viewer).routes(),
            web.post("/-/reload", self._reload),
            *Api(app, options.external_path).routes(),
            *Callback(app).routes(),
        ]
        routes = [web.RouteDef(r.method, prefix + r.path, r.handler, r.kwargs) for r in routes]
        if prefix:
            routes += [web.get("/", _redirect(prefix)), web.get(prefix, _redirect(prefix))]
        for route in routes:
            route.kwargs["expect_handler"] = _await_access
        application.add_routes(routes)
        application.on_response_prepare.append(self._add_headers)
        self._runner = web.AppRunner(
            application, access_log=None, handle_signals=False, shutdown_timeout=_DRAIN
        )
        self._connections = Connections(
            self._server, lambda: self._access.config.tls, _HEADERS, app.metrics
        )
        self._listeners: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._threads = DetachedThreads(_WEB_LOAD_TIMEOUT)
        self._web_unread = False  # the file system has not answered
        self._reload_turn, self._web_turn = asyncio.Lock(), asyncio.Lock()
        self._next_reload: asyncio.Task[None] | None = None

    async def start(self) -> list[str]:
        """Listen.

        Returns:
            The addresses with their real ports, such as `http://127.0.0.1:10375`.

        Raises:
            ConfigError: the web configuration file cannot be used.
            SourceError: its file system does not answer.
            ListenError: one cannot be listened on.
        """
        if self._config is not None:
            self._use(await self._threads.run(self._config, self._config.load))
            self._in_background(self._look_for_changes())
        await self._runner.setup()
        options = self._options
        if options.systemd_socket:
            self._listeners = systemd_sockets()
        else:
            self._listeners = await asyncio.to_thread(listen, options.addresses)
        self._in_background(self._connections.run())
        for listener in self._listeners:
            listener.setblocking(False)
            self._in_background(self._connections.accept(listener))
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
        self._connections.close()
        self._threads.close()
        self._access.close()

    async def reload(self) -> None:
        """Read both configurations again; on any problem with one, that one stays.

        All who ask while one is under way share the next.

        Raises:
            ExporterError: with every problem.
        """
        if self._next_reload is None:
            self._next_reload = asyncio.create_task(self._reload_both())
        await asyncio.shield(self._next_reload)

    async def _reload_both(self) -> None:
        async with self._reload_turn:
            self._next_reload = None
            problems: list[Problem] = []
            other: ExporterError | None = None
            for reload in (self._app.reload, self._reload_web):
                try:
                    await reload()
                except ConfigError as error:
                    problems += error.problems
                except ExporterError as error:
                    other = error
        if problems:
            raise ConfigError(tuple(problems))
        if other:
            raise other

    async def _reload_web(self, *, changed: bool = True) -> None:
        if (config := self._config) is None:
            return
        # One after the other, so that none that is late undoes a newer one.
        async with self._web_turn:
            if not changed and self._threads.hangs(config):
                return  # as was told
            try:
                if not changed and not self._web_unread:
                    changed = await self._threads.run(config, config.changed)
                if changed or self._web_unread:
                    self._use(await self._threads.run(config, config.load))
                    self._web_unread = False
                    self._app.config_status.loaded(_WEB_CONFIG)
                    _log.info("web configuration reloaded")
            except (ConfigError, SourceError) as error:
                # Where there was no answer, no change may be seen later.
                self._web_unread = isinstance(error, SourceError)
                self._app.config_status.failed(_WEB_CONFIG, str(error))
                _log.error("web configuration not reloaded", problems=str(error))
                raise

    def _use(self, config: WebConfig) -> None:
        self._access.use(config)
        tls = config.tls
        self._app.metrics.tls_expiry.set(tls.expires_at if tls else 0.0)
        if tls and (warning := tls.expiry_warning(time.time())):
            _log.warning(warning)

    async def _look_for_changes(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            with suppress(ConfigError, SourceError):  # logged and counted where it happened
                await self._reload_web(changed=False)

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        self._app.supervisor.watch(task)

    def _server(self) -> web.Server:
        assert self._runner.server is not None  # noqa: S101 - there is one since the start
        return self._runner.server

    @web.middleware
    async def _guarded(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        return await self._access.answer(request, handler)

    def _viewer(self, request: web.Request) -> Viewer:
        if self._access.config.users:
            return Viewer(known=True, accounts=None)  # else they would not have come so far
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
            await self.reload()
        except ConfigError as error:
            return web.Response(status=400, text=f"{error}\n")
        except ExporterError as error:
            return web.Response(status=500, text=f"{error}\n")
        return web.Response(text="configuration reloaded\n")


def _redirect(prefix: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Return what leads to the page: relative, as outside of a proxy the path may be another."""

    async def redirect(request: web.Request) -> web.StreamResponse:
        where = prefix if request.path == "/" else prefix[prefix.rindex("/") :]
        raise web.HTTPFound(f".{where}/")

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
