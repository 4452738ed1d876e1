"""The commands that run an exporter: `run`, and `demo` on a stand-in for the API."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

import click
import uvloop

from exporter.cli import options
from exporter.cli.demo import demo as serve_demo
from exporter.config import Config, NamedFiles, load_config
from exporter.daemon import Daemon
from exporter.logs import EXIT_TIMEOUT, STANDARD_ERROR, LogFormat, configure_logging
from exporter.sources.configuration import ConfigFile
from exporter.web.server import WebOptions
from exporter.web.sockets import ListenAddress
from exporter.web.web_config import load_web_config

RESERVED_PATHS: Final = ("/-/", "/api/", "/callback/")
"""Beginnings of paths that have a meaning, and perhaps a lock, of their own."""


def _telemetry_path(_ctx: object, _param: object, path: str) -> str:
    if not re.fullmatch(r"(/[\w.~-]+)+", path, re.ASCII) or path.startswith(RESERVED_PATHS):
        reserved = ", ".join(f"`{start}`" for start in RESERVED_PATHS)
        raise click.BadParameter(f"expected a path such as `/metrics`, not under {reserved}")
    return path


def web_paths(external_url: str, route_prefix: str) -> tuple[str, str]:
    """Return what paths begin with for clients, and here; as Prometheus reads its options.

    Raises:
        click.BadParameter: there is no such path.
    """

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


@click.command()
@options.config_file
@options.listen
@click.option(
    "--web.telemetry-path",
    "telemetry_path",
    callback=_telemetry_path,
    metavar="PATH",
    default="/metrics",
    show_default=True,
    help="Where the metrics are.",
)
@options.web_config
@click.option(
    "--web.systemd-socket",
    "systemd_socket",
    is_flag=True,
    help="Listen on the sockets of a systemd socket unit instead of addresses.",
)
@click.option(
    "--web.open-probes",
    "open_probes",
    is_flag=True,
    help="Answer /-/healthy and /-/ready without a password.",
)
@click.option(
    "--web.external-url",
    "external_url",
    default="",
    help="The URL under which clients reach the exporter, such as that of a reverse proxy.",
)
@click.option(
    "--web.route-prefix",
    "route_prefix",
    default="",
    help="What all paths begin with; by default the path of --web.external-url.",
)
@click.option(
    "--config.auto-reload/--no-config.auto-reload",
    "auto_reload",
    default=True,
    show_default=True,
    help="Reload the configuration when it, or a file of credentials that it names, changes.",
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
    file = ConfigFile(config_file, _load)
    external_path, prefix = web_paths(external_url, route_prefix)
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
        await Daemon(file.load, web, changed=file.changed if auto_reload else None).run()

    _run(serve())


@click.command()
@options.listen
@options.log_level
@options.log_format
def demo(addresses: Sequence[ListenAddress], log_level: str, log_format: LogFormat) -> None:
    """Run the exporter on a stand-in for the API: no key and no file needed."""
    configure_logging(log_level, log_format)
    _run(serve_demo(addresses))


def _load(path: Path, files: NamedFiles) -> Config:
    return load_config(path, files=files)


def _run(work: Coroutine[Any, Any, None]) -> None:  # Any: what it yields and is sent is asyncio's
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)
        # All is done. A thread that hangs, such as in a look-up of a name, is not waited for.
        STANDARD_ERROR.drain(EXIT_TIMEOUT)
        os._exit(0)
