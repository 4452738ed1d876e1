"""The command `demo`: an exporter with a simulated API and a generator of calls."""

from __future__ import annotations

import asyncio
import itertools
import random
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import click

from exporter.app import App
from exporter.cli import options
from exporter.cli.run import run_process
from exporter.config import (
    AccountConfig,
    BalanceConfig,
    Config,
    LedgerConfig,
    PollingConfig,
    WatchConfig,
)
from exporter.daemon import Daemon
from exporter.esms.client import CallRequest, EsmsClient
from exporter.ids import Kind, reference_id
from exporter.ledger.types import NewCall
from exporter.logs import LogFormat, configure_logging
from exporter.secrets import Secret
from exporter.simulator import Account, AccountState, Plan, Simulator
from exporter.web.server import WebOptions
from exporter.web.sockets import ListenAddress

# One call a second costs some 2 million VND an hour: this balance lasts a day.
ACCOUNTS: Final = (
    Account("main", "demo-key-main", "demo-secret-main", balance=50_000_000),
    Account("hotline", "demo-key-hotline", "demo-secret-hotline", balance=50_000_000),
)
REFUSED: Final = Account("old-keys", "demo-key-old", "demo-secret-old", state=AccountState.REVOKED)
CAMPAIGNS: Final = {"otp": 6, "reminder": 3, "emergency": 1}
"""Relative frequency of each campaign."""
CALLS_PER_SECOND: Final = 2.0
TIMEOUT: Final = 5.0  # seconds, to place a call
SPEED: Final = 5.0
"""Fast enough that the demo shows the first result within seconds."""


def configuration(url: str, folder: Path) -> Config:
    """Return the configuration of the demo for a simulated API at `url`."""
    return Config(
        accounts=tuple(
            AccountConfig(
                name=account.name,
                api_key=Secret(account.api_key),
                secret_key=Secret(account.secret_key),
                base_url=url,
                message_url=url,
                balance_url=url,
                balance_warning=1_000_000.0,
            )
            for account in (*ACCOUNTS, REFUSED)
        ),
        # Shorter than the defaults, because a demo runs for minutes.
        polling=PollingConfig(interval=2.0, max_interval=10.0, not_found_grace=30.0),
        balance=BalanceConfig(interval=10.0),
        watch=WatchConfig(labels=("campaign",)),
        ledger=LedgerConfig(url=f"sqlite:///{folder / 'demo.db'}"),
    )


@click.command()
@options.listen
@options.log_level
@options.log_format
def demo(addresses: Sequence[ListenAddress], log_level: str, log_format: LogFormat) -> None:
    """Run an exporter with a simulated API.

    Needs no keys and no configuration.
    """
    configure_logging(log_level, log_format)
    run_process(_serve(addresses))


async def _serve(addresses: Sequence[ListenAddress]) -> None:
    with tempfile.TemporaryDirectory(prefix="esms-exporter-demo-") as folder:
        async with Simulator(accounts=(*ACCOUNTS, REFUSED), speed=SPEED) as simulator:
            config = configuration(simulator.url, Path(folder))
            app = App(lambda: config)

            def on_ready(listening: Sequence[str]) -> None:
                click.echo(_banner(listening, simulator))
                app.supervisor.start(_place_calls(app, config, simulator))

            await Daemon(app, WebOptions(addresses), on_ready).run()


async def _place_calls(app: App, config: Config, simulator: Simulator) -> None:
    """Place calls until cancelled, as a user's program would."""

    async def watch(account: Account, text: str, campaign: str, kind: Kind = Kind.CALL) -> None:
        call = NewCall(account.name, reference_id(text), {"campaign": campaign}, kind)
        await app.calls.add(None, [call])

    # The calls of the refused account were placed before its keys were revoked.
    await watch(REFUSED, "505139D7-54F8-48A9-88FA-9460A78731DD", "otp")
    rng = random.Random(0)  # noqa: S311 - the same calls each time
    async with AsyncExitStack() as stack:
        clients = {
            account.name: await stack.enter_async_context(EsmsClient(account, TIMEOUT))
            for account in config.accounts
        }
        for account in itertools.cycle(ACCOUNTS):
            (campaign,) = rng.choices(list(CAMPAIGNS), list(CAMPAIGNS.values()))
            phone = Secret(f"09000{rng.randrange(100_000):05}")  # not a number in use
            request = CallRequest(phone, f"{rng.getrandbits(128):x}", recording="1")
            answer = await clients[account.name].place_call(request)
            if answer.reference_id:
                await watch(account, answer.reference_id, campaign)
                if campaign == "otp":  # a message, beside the call
                    message, fails = f"{answer.reference_id}100", rng.random() < 0.08
                    plan = Plan(sent=rng.uniform(1, 20), receivers=1, failed=int(fails), price=470)
                    simulator.add_call(account.name, message, plan)
                    await watch(account, message, campaign, Kind.MESSAGE)
            await asyncio.sleep(1 / CALLS_PER_SECOND)


def _banner(listening: Sequence[str], simulator: Simulator) -> str:
    places = "\n".join(
        f"  {url}/          the status page\n  {url}/metrics   the metrics" for url in listening
    )
    return (
        f"esms-exporter demo: {CALLS_PER_SECOND:g} calls a second, and messages, on a simulated\n"
        f"eSMS API, which runs {SPEED:g} times as fast as real time\n"
        f"{places}\n"
        f"  {simulator.control_url}/state   the simulated API and its faults\n"
        "Ctrl-C stops the demo and removes its files."
    )
