"""The command `run`: run an exporter."""

from __future__ import annotations

import os
import re
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

import click
import uvloop

from exporter.app import App
from exporter.cli import options
from exporter.config import load_config
from exporter.config.validation import check_url
from exporter.daemon import Daemon
from exporter.logs import EXIT_TIMEOUT, STANDARD_ERROR, LogFormat, configure_logging
from exporter.sources.configuration import ConfigFile
from exporter.web.server import WebOptions
from exporter.web.sockets import ListenAddress
from exporter.web.web_config import load_web_config

RESERVED_PATHS: Final = ("/-/", "/api/", "/callback/", "/calls/")
"""Prefixes of paths that have their own handlers and access rules."""


def _telemetry_path(path: str) -> str:
    if not re.fullmatch(r"(/[\w.~-]+)+", path, re.ASCII) or f"{path}/".startswith(RESERVED_PATHS):
        reserved = ", ".join(f"`{start}`" for start in RESERVED_PATHS)
        raise ValueError(f"expected a path such as `/metrics`, not under {reserved}")
    return path


def web_paths(external_url: str, route_prefix: str) -> tuple[str, str]:
    """Return the path prefix for clients and the local one, as Prometheus derives them."""

    def path(text: str, option: str, expected: str) -> str:
        path = f"/{text.strip('/')}".rstrip("/")
        if not re.fullmatch(r"(/(?!\.{1,2}(/|\Z))[\w.~-]+)*", path, re.ASCII):
            raise click.BadParameter(f"expected {expected}", param_hint=option)
        return path

    beyond_host = re.sub(r"\Ahttps?://[^/?#]+", "", external_url)
    expected = "`https://HOST/PATH`, or a path such as `/esms`"
    external = path(beyond_host, "--web.external-url", expected)
    prefix = path(route_prefix, "--web.route-prefix", "a path such as `/esms`")
    prefix = prefix if route_prefix else external
    return external if external_url else prefix, prefix


def page_url(external_url: str) -> str | None:
    """Return the URL of the status page; None if only its path is known."""
    if not external_url.startswith(("http://", "https://")):
        return None
    try:
        check_url(external_url, "http", "https", without="?#@ ")
    except ValueError:
        problem = "expected `https://HOST/PATH`, or a path such as `/esms`"
        raise click.BadParameter(problem, param_hint="--web.external-url") from None
    return f"{external_url.rstrip('/')}/"


@click.command()
@options.config_file
@options.listen
@click.option(
    "--web.telemetry-path",
    "telemetry_path",
    type=options.Parsed(_telemetry_path),
    metavar="PATH",
    default="/metrics",
    show_default=True,
    help="Path of the metrics.",
)
@options.web_config
@click.option(
    "--web.systemd-socket",
    "systemd_socket",
    is_flag=True,
    help="Listen on the sockets of a systemd socket unit instead of --web.listen-address.",
)
@click.option(
    "--web.open-probes",
    "open_probes",
    is_flag=True,
    help="Serve /-/healthy and /-/ready without authentication.",
)
@click.option(
    "--web.external-url",
    "external_url",
    default="",
    help="URL at which clients reach the exporter, such as the URL of a reverse proxy.",
)
@click.option(
    "--web.route-prefix",
    "route_prefix",
    default="",
    help="Prefix of all paths; by default the path of --web.external-url.",
)
@click.option(
    "--config.auto-reload/--no-config.auto-reload",
    "auto_reload",
    default=True,
    show_default=True,
    help="Reload the configuration when the file, or a credentials file in it, changes.",
)
@options.log_level
@options.log_format
def run(  # noqa: PLR0913 - an argument for each option
    config_file: Path,
    addresses: Sequence[ListenAddress],
    telemetry_path: str,
    web_config: Path | None,
    log_level: str,
    log_format: LogFormat,
    *,
    auto_reload: bool,
    systemd_socket: bool,
    open_probes: bool,
    external_url: str,
    route_prefix: str,
) -> None:
    """Run the exporter (the default command)."""
    configure_logging(log_level, log_format)
    file = ConfigFile(config_file, lambda path, files: load_config(path, files=files))
    external_path, prefix = web_paths(external_url, route_prefix)
    status_page = page_url(external_url)
    web = WebOptions(
        addresses,
        telemetry_path,
        ConfigFile(web_config, load_web_config) if web_config else None,
        systemd_socket,
        open_probes,
        prefix,
        external_path,
    )

    async def serve() -> None:
        changed = file.changed if auto_reload else None
        app = App(file.load, changed, status_page=status_page)
        await Daemon(app, web).run()

    run_process(serve())


def run_process(work: Coroutine[Any, Any, None]) -> None:  # Any: what asyncio yields and sends
    """Run an exporter, and exit."""

    async def run_and_exit() -> None:
        await work
        # Everything is stopped: do not wait for a blocked thread, such as one in a DNS look-up.
        STANDARD_ERROR.drain(EXIT_TIMEOUT)
        os._exit(0)

    uvloop.run(run_and_exit())
