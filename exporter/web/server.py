"""The HTTP server: where it listens, and which path answers what."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import jinja2
from aiohttp import web

import exporter
from exporter.errors import ConfigError, ExporterError, ListenError
from exporter.metrics.exposition import Renderer, accepts_gzip, compress, wants_openmetrics
from exporter.service import Service
from exporter.web.api import Api, as_problems
from exporter.web.callback import Callback

# Compressing more than this takes long enough to be felt by the polls: it is done in a thread.
_INLINE: Final = 128 * 1024
_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Server": "esms-exporter"}
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to listen; an empty host is every address of the machine."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `:10375`, `127.0.0.1:10375` or `[::1]:10375`.

        Raises:
            ValueError: it is none of these.
        """
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if (
            not colon
            or not (port.isascii() and port.isdigit())
            or int(port) > 65535
            or (":" in host and not bracketed)
        ):
            raise ValueError("expected `:10375`, `127.0.0.1:10375` or `[::1]:10375`")
        return cls(host[1:-1] if bracketed else host, int(port))

    def __str__(self) -> str:
        """Render as it is written on the command line."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class WebServer:
    """Serves the metrics, the probes and the page.

    Args:
        service: what is shown.
        telemetry_path: where the metrics are.
    """

    def __init__(self, service: Service, telemetry_path: str = "/metrics") -> None:
        self._service = service
        self._telemetry_path = telemetry_path
        self._renderer = Renderer()
        templates = jinja2.Environment(
            loader=jinja2.PackageLoader("exporter.web"), autoescape=True, trim_blocks=True
        )
        self._page = templates.get_template("status.html")
        application = web.Application(client_max_size=64 * 1024, middlewares=[as_problems])
        application.add_routes(
            [
                web.get("/", self._status_page),
                web.get(telemetry_path, self._metrics),
                web.get("/-/healthy", self._healthy),
                web.get("/-/ready", self._ready),
                web.post("/-/reload", self._reload),
                *Api(service).routes(),
                *Callback(service).routes(),
            ]
        )
        application.on_response_prepare.append(_add_headers)
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False)

    async def start(self, addresses: Sequence[ListenAddress]) -> list[str]:
        """Listen on each address.

        Returns:
            The addresses with their real ports, such as `http://127.0.0.1:10375`.

        Raises:
            ListenError: one cannot be listened on.
        """
        await self._runner.setup()
        listening = []
        for address in addresses:
            site = web.TCPSite(self._runner, address.host or None, address.port)
            try:
                await site.start()
            except OSError as error:
                reason = (error.strerror or "cannot be used").split(": ")[-1]
                raise ListenError(
                    f"cannot listen on {address}: {reason}; "
                    "end what uses it, or give another --web.listen-address"
                ) from None
        for bound in self._runner.addresses:
            host, port = bound[:2]
            host = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, host)  # noqa: S104
            listening.append(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        return sorted(set(listening))

    async def stop(self) -> None:
        """Close the sockets and the connections."""
        await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        openmetrics = wants_openmetrics(",".join(request.headers.getall("Accept", [])))
        exposition = self._renderer.render(self._service.families(), openmetrics=openmetrics)
        headers = {"Content-Type": exposition.content_type, "Vary": "Accept, Accept-Encoding"}
        body = exposition.body
        if accepts_gzip(",".join(request.headers.getall("Accept-Encoding", []))):
            headers["Content-Encoding"] = "gzip"
            body = (
                compress(body) if len(body) < _INLINE else await asyncio.to_thread(compress, body)
            )
        return web.Response(body=body, headers=headers)

    async def _healthy(self, _request: web.Request) -> web.Response:
        return web.Response(text="esms-exporter is healthy.\n")

    async def _ready(self, _request: web.Request) -> web.Response:
        if reasons := self._service.not_ready():
            return web.Response(status=503, text="".join(f"{reason}\n" for reason in reasons))
        return web.Response(text="esms-exporter is ready.\n")

    async def _reload(self, _request: web.Request) -> web.Response:
        try:
            await self._service.reload()
        except ConfigError as error:
            return web.Response(status=400, text=f"{error}\n")
        except ExporterError as error:
            return web.Response(status=500, text=f"{error}\n")
        return web.Response(text="configuration reloaded\n")

    async def _status_page(self, _request: web.Request) -> web.Response:
        page = self._page.render(
            version=exporter.__version__,
            telemetry_path=self._telemetry_path,
            accounts=self._service.status(),
            problems=self._service.not_ready(),
        )
        return web.Response(text=page, content_type="text/html", headers=_PAGE_HEADERS)


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
