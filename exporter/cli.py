"""The commands."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import sys
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import click
import uvloop
from click.core import ParameterSource
from click.shell_completion import CompletionItem

import exporter
from exporter.commands.calls import calls
from exporter.commands.canary import canary
from exporter.commands.completion import completion
from exporter.commands.health import check_listener, options_of, schemes_of
from exporter.commands.lookup import lookup
from exporter.commands.options import config_file
from exporter.config import Config, NamedFiles, json_schema, load_config
from exporter.demo import demo
from exporter.errors import ExporterError
from exporter.ledger.beside import back_up
from exporter.logs import EXIT_TIMEOUT, LEVELS, STANDARD_ERROR, LogFormat, configure_logging
from exporter.run import limit_process, serve
from exporter.simulator.command import simulate
from exporter.sources.configuration import ConfigFile
from exporter.sources.files import Settings, check_files
from exporter.web.callback import callback_url
from exporter.web.config_file import load_web_config
from exporter.web.listening import ListenAddress
from exporter.web.server import WebOptions

DEFAULT_ADDRESS: Final = ":10375"
TAKEN: Final = ("/-/", "/api/", "/callback/")
"""Beginnings of paths that have a meaning, and perhaps a lock, of their own."""


class _Address(click.ParamType[ListenAddress]):
    name = "ADDRESS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> ListenAddress:  # Any: click's own signature
        try:
            return value if isinstance(value, ListenAddress) else ListenAddress.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _TelemetryPath(click.ParamType[str]):
    name = "PATH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:  # Any: click's own signature
        path = str(value)
        if not re.fullmatch(r"(/[\w.~-]+)+", path, re.ASCII) or path.startswith(TAKEN):
            taken = ", ".join(f"`{start}`" for start in TAKEN)
            self.fail(f"expected a path such as `/metrics`, not under {taken}", param, ctx)
        return path


class _DefaultsToRun(click.Group):
    """A group whose command may be left out: options alone mean `run`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"--help", "--version"}
        if args and args[0].startswith("-") and args[0] not in own:
            args.insert(0, "run")
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Offer the options of `run`, too."""
        own = super().shell_complete(ctx, incomplete)
        return own + run.shell_complete(ctx, incomplete) if incomplete.startswith("-") else own


_listen = click.option(
    "--web.listen-address",
    "addresses",
    type=_Address(),
    multiple=True,
    default=(DEFAULT_ADDRESS,),
    show_default=True,
    help="Where to listen; may be given several times.",
)


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


_web_config = click.option(
    "--web.config.file",
    "web_config",
    type=click.Path(path_type=Path),
    help="TLS, users and limits, in the format of the Prometheus exporter-toolkit.",
)
_log_level = click.option(
    "--log.level",
    "log_level",
    type=click.Choice(list(LEVELS)),
    default="info",
    show_default=True,
    help="Log events of at least this level.",
)
_log_format = click.option(
    "--log.format",
    "log_format",
    type=click.Choice(["logfmt", "json"]),
    default="logfmt",
    show_default=True,
    help="How log lines look.",
)


@click.group(cls=_DefaultsToRun)
@click.version_option(exporter.__version__, prog_name="esms-exporter")
def commands() -> None:
    """Expose what became of voice calls placed through the eSMS voice API to Prometheus."""


@commands.command()
@config_file
@_listen
@click.option(
    "--web.telemetry-path",
    "telemetry_path",
    type=_TelemetryPath(),
    default="/metrics",
    show_default=True,
    help="Where the metrics are.",
)
@_web_config
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
@_log_level
@_log_format
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
    _run(serve(file.load, web, changed=file.changed if auto_reload else None))


@commands.command("demo")
@_listen
@_log_level
@_log_format
def run_demo(addresses: Sequence[ListenAddress], log_level: str, log_format: LogFormat) -> None:
    """Run the exporter on a stand-in for the API: no key and no file needed."""
    configure_logging(log_level, log_format)
    _run(demo(addresses))


for _command in (lookup, calls, canary, completion, simulate):
    commands.add_command(_command)


@commands.command()
@config_file
@_web_config
def check(config_file: Path, web_config: Path | None) -> None:
    """Check the configuration, and the files of calls: exit 0, or 1 with every problem."""
    files = NamedFiles()
    config = load_config(config_file, files=files)
    if web_config:
        tls = load_web_config(web_config, files).tls
        if tls and (warning := tls.expiry_warning(time.time())):
            click.echo(f"{web_config}: {warning}", err=True)
    for path in sorted(files.exposed):
        click.echo(f"{path}: can be read by anybody on the machine", err=True)
    names = [account.name for account in config.accounts]
    in_files = check_files(Settings(config.watch.files, names, config.watch.labels))
    calls = len(config.watch.calls) + in_files
    click.echo(f"{config_file}: good: {len(config.accounts)} accounts, {calls} calls")


@commands.command()
@config_file
@click.argument("file", type=click.Path(path_type=Path))
def backup(config_file: Path, file: Path) -> None:
    """Copy the ledger to a new FILE, also while the exporter runs.

    For a ledger in a file of SQLite; PostgreSQL has `pg_dump`.
    """
    calls = back_up(load_config(config_file).ledger.url.reveal(), file)
    click.echo(f"{file}: {calls} calls")


@commands.command(context_settings={"ignore_unknown_options": True})
@_listen
@_web_config
@click.argument("others", nargs=-1, type=click.UNPROCESSED, metavar="[OTHER OPTIONS OF run]")
@click.pass_context
def health(
    ctx: click.Context, addresses: Sequence[ListenAddress], web_config: Path | None, others: object
) -> None:
    """Check that an exporter on this machine answers: exit 0, or 1 and why not.

    Takes the options that the exporter was started with. Without any, those of the first process
    are taken, which in a container is the exporter. Neither a proxy nor a password is used.
    """
    given = {ctx.get_parameter_source(name) for name in ("addresses", "web_config")}
    if not others and given == {ParameterSource.DEFAULT}:
        with suppress(OSError):
            started = options_of(Path("/proc/1/cmdline").read_bytes())
            options = health.make_context("health", started).params
            addresses, web_config = options["addresses"], options["web_config"]
    for address in addresses:
        check_listener(address, schemes_of(web_config))
    click.echo("healthy")


@commands.command("callback-url")
@config_file
@click.option("--url", required=True, help="Where the provider reaches the exporter.")
@click.option("--account", "name", help="Of this account alone.")
def show_callback_url(config_file: Path, url: str, name: str | None) -> None:
    """Print each account's `CallbackUrl`, percent-encoded as MakeCall* wants it.

    It holds the account's token: who knows it can call back.
    """
    base = urlsplit(url)
    if base.scheme not in {"http", "https"} or not base.hostname or base.query or base.fragment:
        raise click.BadParameter("expected `https://HOST...`", param_hint="--url")
    tokens = {
        account.name: account.callback_token
        for account in load_config(config_file).accounts
        if account.callback_token and name in {None, account.name}
    }
    if not tokens:
        raise ExporterError("no such account has a `callback_token`")
    for account, token in tokens.items():
        click.echo(quote(callback_url(url, account, token), safe=""))


@commands.command()
def schema() -> None:
    """Print the JSON Schema of the configuration."""
    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def _load(path: Path, files: NamedFiles) -> Config:
    return load_config(path, files=files)


def _run(work: Coroutine[Any, Any, None]) -> None:  # Any: what it yields and is sent is asyncio's
    limit_process()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)
        # All is done. A thread that hangs, such as in a look-up of a name, is not waited for.
        STANDARD_ERROR.drain(EXIT_TIMEOUT)
        os._exit(0)


def _prepare_standard_streams() -> None:
    """Open closed standard streams on the null device, and have none fail on a character.

    Otherwise the next file or socket would become standard error, and be written to as such.
    """
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def main() -> None:
    """Run the command line; exit 0 when ended as asked, 1 when failed, 2 on wrong usage."""
    _prepare_standard_streams()
    try:
        commands.main(prog_name="esms-exporter")
    except ExporterError as error:
        with suppress(OSError):  # the exit code tells it, too
            click.echo(f"esms-exporter: {error}", err=True)
        sys.exit(1)
