"""The command `health`: check an exporter on this machine, for container health checks."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Final, TypeVar

import click

from exporter.cli import options
from exporter.errors import ClientCertificateError, RemoteExporterError
from exporter.web.sockets import ListenAddress

R = TypeVar("R")

PROGRAM: Final = "esms-exporter"

_TIMEOUT: Final = 4.0
"""Seconds to wait for a response; a blocked event loop takes longer and counts as failed."""

_MAX_BODY: Final = 64 << 20


def container_options() -> list[str]:
    """Return the options of process 1, if it is an exporter, as in a container.

    An init process or an interpreter may come first in its command line.
    """
    try:
        command_line = Path("/proc/1/cmdline").read_bytes()
    except OSError:
        return []
    words = command_line.decode(errors="surrogateescape").split("\0")[:-1]
    names = [Path(word).name for word in words]
    return words[names.index(PROGRAM) + 1 :] if PROGRAM in names else []


def get(
    address: ListenAddress,
    schemes: Iterable[str],
    path: str = "/-/healthy",
    timeout: float = _TIMEOUT,
) -> tuple[int, bytes]:
    """Request a path of an exporter on this machine; return the status and the body.

    Raises:
        ClientCertificateError: an exporter responds, but requires a client certificate.
        RemoteExporterError: no exporter responds.
    """
    hosts = [address.host] if address.host else ["127.0.0.1", "::1"]
    problem = ""
    for host, scheme in product(hosts, schemes):
        try:
            request = partial(_request, host, address.port, scheme, path, timeout)
            if response := _in_time(request, timeout):
                return response
            problem = "another program responds at this address"
        except ssl.SSLError as error:
            if "ALERT" in (error.reason or ""):
                message = f"{address}: the exporter requires a client certificate"
                raise ClientCertificateError(message) from None
            problem = problem or f"TLS failed ({error.reason})"
        except (OSError, HTTPException) as error:
            reason = (isinstance(error, OSError) and error.strerror) or type(error).__name__
            problem = problem or f"no answer ({reason})"
    raise RemoteExporterError(f"{address}: {problem}")


def _in_time(function: Callable[[], R], timeout: float) -> R:
    """Run a function in a thread; raise `TimeoutError` after a timeout in seconds.

    The timeout of a connection bounds each of its reads, but not their number.
    """
    done = Future[R]()

    def run() -> None:
        try:
            done.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised by the future
            done.set_exception(error)

    Thread(target=run, daemon=True).start()
    return done.result(timeout)


def _request(
    host: str, port: int, scheme: str, path: str, timeout: float
) -> tuple[int, bytes] | None:
    """Return the status and the body; None if the server is another program.

    Certificates are not verified, as no secret is sent.
    """
    if scheme == "http":
        connection = HTTPConnection(host, port, timeout=timeout)
    else:
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
        connection = HTTPSConnection(host, port, timeout=timeout, context=trust)
    with closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        if response.headers.get("Server") != PROGRAM:
            return None
        return response.status, response.read(_MAX_BODY)


def schemes_of(web_config: Path | None) -> Sequence[str]:
    """Return the schemes to try, the most likely one first.

    The web configuration in use may be older than the file, which may not even be readable here.
    """
    return ("https", "http") if web_config else ("http",)


class _Command(click.Command):
    """Without arguments, uses the options of the exporter in a container."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or container_options())


@click.command(cls=_Command, context_settings={"ignore_unknown_options": True})
@options.listen
@options.web_config
@click.argument("others", nargs=-1, type=click.UNPROCESSED, metavar="[OTHER OPTIONS OF run]")
def health(
    addresses: Sequence[ListenAddress],
    web_config: Path | None,
    others: object,  # noqa: ARG001 - accepted as options of `run`
) -> None:
    """Check that an exporter on this machine responds.

    The exit code is 1 if it does not. Accepts the options of `run`. By default, uses the options of
    process 1, which is the exporter in a container. Uses no proxy and sends no password.
    """
    for address in addresses:
        with suppress(ClientCertificateError):  # any response is enough, even 401
            get(address, schemes_of(web_config))
    click.echo("healthy")
