"""The command `simulate`: run only the simulated API."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from exporter.cli.options import ADDRESS, PATH, POSITIVE
from exporter.signals import handled_signals
from exporter.simulator import ACCOUNT, TEMPLATES, Account, Simulator, describe
from exporter.web.sockets import ListenAddress

LISTEN: Final = "127.0.0.1:10376"
# Obviously not real.
DEFAULT_ACCOUNTS: Final = (
    Account("main", "SIMULATED-API-KEY-MAIN", "SIMULATED-SECRET-KEY-MAIN", tps=20),
    Account("backup", "SIMULATED-API-KEY-BACKUP", "SIMULATED-SECRET-KEY-BACKUP", tps=5),
)
ACCOUNT_FORMAT: Final = "NAME:API_KEY:SECRET_KEY[:TPS]"


def _accounts(_: click.Context, __: click.Parameter, values: Sequence[str]) -> list[Account]:
    names = ("name", "api_key", "secret_key", "tps")
    try:
        accounts = [
            ACCOUNT.validate_python(dict(zip(names, value.split(":", 3), strict=False)))
            for value in values
        ]
    except ValueError as error:  # the message leaves out the value, which holds a secret
        raise click.BadParameter(f"expected {ACCOUNT_FORMAT}: {describe(error)}") from None
    for name in ("name", "api_key"):
        if len({getattr(account, name) for account in accounts}) < len(accounts):
            raise click.BadParameter(f"two accounts have the same {name}")
    return accounts


@click.command(context_settings={"show_default": True})
@click.option(
    "--listen", type=ADDRESS, metavar="ADDRESS", default=LISTEN, help="Address to listen on."
)
@click.option(
    "--account",
    "accounts",
    callback=_accounts,
    metavar=ACCOUNT_FORMAT,
    multiple=True,
    help="An account and its requests per second; may be repeated.  [default: two sample accounts]",
)
@click.option("--seed", type=int, default=0, help="Seed of the random results of calls.")
@click.option("--tls-cert-file", type=PATH, help="Certificate for HTTPS.")
@click.option("--tls-key-file", type=PATH, help="Key of the certificate, if it is in another file.")
@click.option(
    "--speed",
    type=POSITIVE,
    metavar="NUMBER",
    default=1.0,
    help="Speed of simulated calls, as a multiple of real time.",
)
@click.option(
    "--unknown-ids",
    type=click.Choice(["found", "not_found"]),
    default="found",
    help="Whether the API finds a call for every well-formed ReferenceId.",
)
def simulate(
    *,
    listen: ListenAddress,
    accounts: Sequence[Account],
    seed: int,
    tls_cert_file: Path | None,
    tls_key_file: Path | None,
    speed: float,
    unknown_ids: str,
) -> None:
    """Run a simulated eSMS API for tests and experiments."""
    simulator = Simulator(
        accounts=accounts or DEFAULT_ACCOUNTS,
        seed=seed,
        host=listen.host,
        port=listen.port,
        ssl_context=_ssl_context(tls_cert_file, tls_key_file),
        find_unknown_ids=unknown_ids == "found",
        speed=speed,
    )
    asyncio.run(_serve(simulator, listen))


def _ssl_context(cert_file: Path | None, key_file: Path | None) -> ssl.SSLContext | None:
    if cert_file is None:
        if key_file is not None:
            raise click.UsageError("--tls-key-file needs --tls-cert-file")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert_file, key_file)
    except OSError as error:
        reason = error.strerror or error
        raise click.ClickException(f"cannot use the certificate {cert_file}: {reason}") from None
    return context


async def _serve(simulator: Simulator, listen: ListenAddress) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    # Before the banner is printed: a program that reads it may send a signal at once.
    with handled_signals(stop.set):
        try:
            await simulator.start()
        except OSError as error:
            reason = error.strerror or error
            raise click.ClickException(f"cannot listen on {listen}: {reason}") from None
        try:
            click.echo(_banner(simulator))
            await stop.wait()
        finally:
            await simulator.stop()


def _banner(simulator: Simulator) -> str:
    accounts = [
        f"  {account.name}: api_key={account.api_key} secret_key={account.secret_key}"
        + ("" if account.tps is None else f" ({account.tps:g} requests/s)")
        for account in simulator.provider.accounts.values()
    ]
    return "\n".join(
        [
            f"listening on {simulator.origin}",
            f"base_url: {simulator.url}",
            f"balance_url: {simulator.url}",
            "accounts (the keys are not real):",
            *accounts,
            f"templates and recordings: {', '.join(TEMPLATES)}",
            "control:",
            *(f"  {path}" for path in simulator.control_paths),
        ]
    )
