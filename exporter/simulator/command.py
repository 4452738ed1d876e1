"""The command `simulate`: the stand-in API alone, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import signal
import ssl
from pathlib import Path

import click

from exporter.simulator.accounts import Account
from exporter.simulator.control import PATHS
from exporter.simulator.provider import UnknownIds
from exporter.simulator.server import Simulator

# Made up, and recognisably so.
DEFAULT_ACCOUNTS = (
    Account("main", "SIMULATED-API-KEY-MAIN", "SIMULATED-SECRET-KEY-MAIN", tps=20),
    Account("backup", "SIMULATED-API-KEY-BACKUP", "SIMULATED-SECRET-KEY-BACKUP", tps=5),
)


class ListenAddress(click.ParamType[tuple[str, int]]):
    """`:10376`, `127.0.0.1:10376` or `[::1]:10376`."""

    name = "address"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Host (empty for every interface) and port."""
        host, colon, port = str(value).rpartition(":")
        if colon and port.isascii() and port.isdigit() and int(port) < 1 << 16:
            if host.startswith("[") and host.endswith("]"):
                return host[1:-1], int(port)
            if ":" not in host:
                return host, int(port)
        raise click.BadParameter(
            f"{value!r} is not HOST:PORT, such as :10376 or [::1]:10376", ctx, param
        )


class AccountOption(click.ParamType[Account]):
    """`NAME:API_KEY:SECRET_KEY[:TPS]`."""

    name = "account"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Account:
        """The account."""
        if isinstance(value, Account):
            return value
        # No message holds the value itself, which holds a secret.
        expected = "expected NAME:API_KEY:SECRET_KEY[:TPS]"
        parts = str(value).split(":")
        if not 3 <= len(parts) <= 4:
            raise click.BadParameter(f"{expected}, not {len(parts)} parts", ctx, param)
        try:
            tps = float(parts[3]) if len(parts) == 4 else None
        except ValueError:
            raise click.BadParameter(f"{expected}, with a number as TPS", ctx, param) from None
        try:
            return Account(parts[0], parts[1], parts[2], tps=tps)
        except ValueError as error:
            raise click.BadParameter(f"{expected}: {error}", ctx, param) from None


@click.command()
@click.option(
    "--listen",
    type=ListenAddress(),
    default="127.0.0.1:10376",
    show_default=True,
    help="Where to listen.",
)
@click.option(
    "--account",
    "accounts",
    type=AccountOption(),
    metavar="NAME:API_KEY:SECRET_KEY[:TPS]",
    multiple=True,
    help="An account, and its requests per second; may be repeated.  [default: two made-up ones]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same calls.")
@click.option("--tls-cert-file", type=click.Path(path_type=Path), help="Speak HTTPS.")
@click.option(
    "--tls-key-file",
    type=click.Path(path_type=Path),
    help="The certificate's key, where it is not in the same file.",
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="How much faster than the clock calls live.",
)
@click.option(
    "--unknown-ids",
    type=click.Choice([choice.value for choice in UnknownIds]),
    default=UnknownIds.FOUND.value,
    show_default=True,
    help="Whether any well-formed ReferenceId is a call, or only those that were placed.",
)
def simulate(
    *,
    listen: tuple[str, int],
    accounts: tuple[Account, ...],
    seed: int,
    tls_cert_file: Path | None,
    tls_key_file: Path | None,
    speed: float,
    unknown_ids: str,
) -> None:
    """Run a stand-in for the provider's API, to try things out against."""
    host, port = listen
    names = [account.name for account in accounts]
    if len(set(names)) < len(names):
        raise click.UsageError("--account: a name is given twice")
    tls = _tls(tls_cert_file, tls_key_file)
    try:
        sim = Simulator(
            accounts=accounts or DEFAULT_ACCOUNTS,
            seed=seed,
            # Every interface with any port would be a port of its own for each of IPv4 and IPv6.
            host=host or ("" if port else "0.0.0.0"),  # noqa: S104 - asked for
            port=port,
            ssl_context=tls,
            unknown_ids=UnknownIds(unknown_ids),
            speed=speed,
        )
    except ValueError as error:
        raise click.UsageError(f"--account: {error}") from None
    try:
        asyncio.run(_serve(sim))
    except OSError as error:
        reason = error.strerror or error
        raise click.ClickException(f"cannot listen on {host}:{port}: {reason}") from None


def _tls(cert_file: Path | None, key_file: Path | None) -> ssl.SSLContext | None:
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


async def _serve(sim: Simulator) -> None:
    """Serve until a signal comes."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    # Before it says that it listens, because whoever reads that may send one at once.
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    try:
        async with sim:
            click.echo(_banner(sim))
            await stop.wait()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _banner(sim: Simulator) -> str:
    accounts = [
        f"  {account.name}: api_key={account.api_key} secret_key={account.secret_key}"
        + ("" if account.tps is None else f" ({account.tps:g} requests/s)")
        for account in sim.provider.accounts.values()
    ]
    return "\n".join(
        [
            f"listening on {sim.origin}",
            f"base_url: {sim.url}",
            f"balance_url: {sim.url}",
            "accounts (none of this is secret, none of it is real):",
            *accounts,
            f"templates and recordings: {', '.join(sorted(sim.provider.templates))}",
            "control:",
            *(f"  {path}" for path in PATHS),
        ]
    )
