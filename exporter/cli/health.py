"""The command `health`: check an exporter on this machine, for container health checks."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from itertools import product
from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource

from exporter.cli import options
from exporter.errors import ConfigError, RemoteExporterError
from exporter.web.sockets import ListenAddress

PROGRAM: Final = "esms-exporter"

_TIMEOUT: Final = 4.0
"""Seconds to wait for a response; a blocked event loop takes longer and counts as failed."""


def options_of(command_line: bytes) -> list[str]:
    """Return the options of the exporter in a command line; empty for another program.

    Args:
        command_line: as in `/proc/PID/cmdline`; may start with an init process or an interpreter.
    """
    words = command_line.decode(errors="surrogateescape").split("\0")[:-1]
    names = [Path(word).name for word in words]
    return words[names.index(PROGRAM) + 1 :] if PROGRAM in names else []


def schemes_of(web_config: Path | None) -> Sequence[str]:
    """Return the schemes to try, the more likely one first.

    The exporter may still run with an earlier version of the web configuration file.
    """
    if web_config is None:
        return ("http",)
    # Imported only if needed: the import takes most of a second.
    from exporter.web.web_config import load_web_config  # noqa: PLC0415

    try:
        secured = load_web_config(web_config).tls_server_config is not None
    except ConfigError:
        secured = True
    return ("https", "http") if secured else ("http", "https")


def check_listener(address: ListenAddress, schemes: Sequence[str]) -> None:
    """Check that an exporter responds at an address, even with 401 or a TLS alert.

    Raises:
        RemoteExporterError: no exporter responds.
    """
    hosts = [address.host] if address.host else ["127.0.0.1", "::1"]
    problem = ""
    for host, scheme in product(hosts, schemes):
        try:
            if _server_at(host, address.port, scheme) == PROGRAM:
                return
            problem = "another program responds at this address"
        except ssl.SSLError as error:
            # The server requires a client certificate: enough to show that it responds.
            if "ALERT" in (error.reason or ""):
                return
            problem = problem or f"TLS failed ({error.reason})"
        except (OSError, HTTPException) as error:
            reason = (isinstance(error, OSError) and error.strerror) or type(error).__name__
            problem = problem or f"no answer ({reason})"
    raise RemoteExporterError(f"{address}: {problem}")


def _server_at(host: str, port: int, scheme: str) -> str | None:
    """Return the `Server` header; certificates are not verified, as no secret is sent."""
    if scheme == "http":
        connection = HTTPConnection(host, port, timeout=_TIMEOUT)
    else:
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
        connection = HTTPSConnection(host, port, timeout=_TIMEOUT, context=trust)
    with closing(connection):
        connection.request("GET", "/-/healthy")
        return connection.getresponse().headers.get("Server")


@click.command(context_settings={"ignore_unknown_options": True})
@options.listen
@options.web_config
@click.argument("others", nargs=-1, type=click.UNPROCESSED, metavar="[OTHER OPTIONS OF run]")
@click.pass_context
def health(
    ctx: click.Context, addresses: Sequence[ListenAddress], web_config: Path | None, others: object
) -> None:
    """Check that an exporter on this machine responds; exit code 1 if not.

    Takes the options of `run`. Without options, those of process 1 are used, which is the exporter
    in a container. No proxy is used and no password is sent.
    """
    given = {ctx.get_parameter_source(name) for name in ("addresses", "web_config")}
    if not others and given == {ParameterSource.DEFAULT}:
        with suppress(OSError):
            started = options_of(Path("/proc/1/cmdline").read_bytes())
            params = health.make_context("health", started).params
            addresses, web_config = params["addresses"], params["web_config"]
    for address in addresses:
        check_listener(address, schemes_of(web_config))
    click.echo("healthy")
