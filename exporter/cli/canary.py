"""The command `canary`: show what a canary would send, or place a call now."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import uvloop

from exporter.calls import Finished, GiveUpPolicy, WatchedCall, verdict
from exporter.canaries.runs import CanaryRunner, call_request
from exporter.canaries.schedule import schedule_of
from exporter.cli.options import config_file
from exporter.config import AccountConfig, CanaryConfig, Config, load_config
from exporter.errors import ExporterError
from exporter.esms.answers import Answer
from exporter.esms.client import CallRequest, EsmsClient
from exporter.ledger import canary_runs
from exporter.ledger.canary_runs import CanaryResult, NotStarted, Run
from exporter.ledger.clock import LedgerClock
from exporter.ledger.engine import Database, open_database
from exporter.ledger.store import Store
from exporter.ledger.types import Observation
from exporter.logs import configure_logging

R = TypeVar("R")

_SHOWN: Final = 5
_CHECK_INTERVAL: Final = 0.5
_POLL_INTERVAL: Final = 5.0
_GIVE_UP: Final = 30.0
"""Seconds after the end of `within` until a call whose polls fail counts as late."""


@click.command()
@click.argument("name")
@config_file
@click.option("--dry-run", is_flag=True, help="Show the request and the next due times.")
@click.option("--now", is_flag=True, help="Place a call now and wait for its result. Costs money.")
def canary(name: str, config_file: Path, *, dry_run: bool, now: bool) -> None:
    """Show or place the call of the canary NAME.

    A call is recorded in the ledger, with or without a running exporter: it counts for
    `max_per_day` and in the metrics. The exit code is 0 if the result is as expected.
    """
    configure_logging("error", "logfmt")
    if dry_run is now:
        raise click.UsageError("expected either --dry-run or --now")
    config = load_config(config_file)
    found = next((item for item in config.canaries if item.name == name), None)
    if found is None:
        known = ", ".join(item.name for item in config.canaries) or "none"
        raise click.BadParameter(f"no such canary; configured: {known}", param_hint="NAME")
    account = next(item for item in config.accounts if item.name == found.account)
    if dry_run:
        _show(account, found, time.time())
        return
    result = uvloop.run(_call(config, account, found))
    sys.exit(0 if result == CanaryResult.SUCCESS else 1)


def _show(account: AccountConfig, canary: CanaryConfig, now: float) -> None:
    due = list(islice(schedule_of(canary).after(now), _SHOWN))
    request = call_request(canary, due[0] if due else int(now))
    hidden = {"ApiKey": "***", "SecretKey": "***", "Phone": "***"}
    click.echo(f"{canary.name}: account {account.name}, at most {canary.max_per_day} calls a day")
    click.echo(f"GET {account.base_url}/{request.operation}")
    for key, value in {**hidden, **request.parameters()}.items():
        click.echo(f"  {key}={value}")
    key = f", key {canary.expect_key}" if canary.expect_key else ""
    click.echo(f"expected: {canary.expect}{key}, within {canary.within:g} s")
    click.echo("due:")
    for moment in due:
        click.echo(f"  {datetime.fromtimestamp(moment, canary.zone):%Y-%m-%d %H:%M:%S %z}")


async def _call(config: Config, account: AccountConfig, canary: CanaryConfig) -> str | None:
    """Place a call, wait for its result, and return the result of the run."""
    reported = False
    interval, polled_at = min(_POLL_INTERVAL, config.polling.interval), -math.inf

    def report(stage: str, about: Mapping[str, object]) -> None:
        nonlocal reported
        reported = stage in list(CanaryResult)
        _say(stage, **about)

    with closing(open_database(config.ledger.url.reveal(), exclusive=False)) as database:

        async def execute(statements: Callable[..., R], *args: Any, **kwargs: Any) -> R:
            # Any: the arguments of the statements. Blocks: nothing else runs in the event loop.
            return database.run(statements, *args, **kwargs)

        database.keep_time(clock := LedgerClock(), opened=True)
        store = Store(database, clock)
        runner = CanaryRunner(execute, clock, report)
        async with EsmsClient(account, config.polling.timeout, tls=config.tls) as client:
            _say("placing", canary=canary.name, account=account.name)
            row = await _place(runner, client, canary)
            while run := _open_run(database, row):
                if not await runner.finish(run):
                    if clock.now() >= run.deadline_at + _GIVE_UP:
                        await runner.end(row, run.canary, CanaryResult.LATE)
                    elif time.monotonic() >= polled_at + interval:
                        polled_at = time.monotonic()
                        # Because the exporter may not be running.
                        if observation := await _poll(client, run, clock):
                            database.run(store.write, [observation])
                await asyncio.sleep(_CHECK_INTERVAL)
        result, status = database.run(canary_runs.find, row)
    if not reported:  # a running exporter ended the run
        _say(str(result), status=status)
    return str(result) if result else None


async def _place(runner: CanaryRunner, client: EsmsClient, canary: CanaryConfig) -> int:
    async def send(request: CallRequest) -> tuple[Answer, float]:
        started = time.monotonic()
        return await client.place_call(request), time.monotonic() - started

    while True:
        placed = await runner.place(canary, int(time.time()), send, by_hand=True)
        if isinstance(placed, int):
            return placed
        if placed is NotStarted.LIMITED:
            limit = canary.max_per_day
            raise ExporterError(f"not placed: `max_per_day` ({limit} calls) is reached")
        await asyncio.sleep(1)  # another call was placed in the same second


def _open_run(database: Database, row: int) -> Run | None:
    state = database.run(canary_runs.read_state, (), time.time())
    return next((run for run in state.open if run.id == row), None)


async def _poll(client: EsmsClient, run: Run, clock: LedgerClock) -> Observation | None:
    if run.call_id is None or run.reference_id is None:
        return None
    answer, now = await client.send_status(run.reference_id), clock.now()
    call = WatchedCall(run.call_id, run.reference_id, run.accepted_at or now)
    found = verdict(call, answer, now, GiveUpPolicy())
    return Observation(run.account, call, found, now) if isinstance(found, Finished) else None


def _say(stage: str, **about: object) -> None:
    more = " ".join(
        f"{name}={f'{value:.3f}' if isinstance(value, float) else value}"
        for name, value in about.items()
        if value not in (None, "")
    )
    click.echo(f"{datetime.now().astimezone():%H:%M:%S} {stage} {more}".rstrip())
