"""The command `canary`: shows what a canary would call, or has it call now."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
import uvloop

from exporter.account import Account
from exporter.canaries.results import CanaryResult
from exporter.canaries.runs import Runs, call_request
from exporter.cli.options import config_file
from exporter.config import CanaryConfig, Config, load_config
from exporter.daemon import limit_process
from exporter.errors import ExporterError
from exporter.ledger.access import open_for_command
from exporter.ledger.canary_runs import CanaryRuns, NotBegun, Run
from exporter.ledger.clock import LedgerClock, machine_clocks
from exporter.ledger.engine import Database
from exporter.logs import configure_logging
from exporter.metrics.catalogue import Catalogue
from exporter.threads import SerialThread

_SHOWN: Final = 5
_LOOK_EVERY: Final = 0.5
_ASK_EVERY: Final = 5.0
_GIVE_UP: Final = 30.0
"""Seconds after which a call that is not in time, and cannot be asked for, is left alone."""


@click.command()
@click.argument("name")
@config_file
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and when; send nothing.")
@click.option("--now", is_flag=True, help="Place one call now, and follow it. It costs money.")
def canary(name: str, config_file: Path, *, dry_run: bool, now: bool) -> None:
    """Show what the canary NAME calls, and when; or have it call now.

    A call that is placed by hand is written to the ledger as any other, whether the exporter runs
    or not: it counts for `max_per_day` and in the metrics. Exit 0 where it ended as expected.
    """
    configure_logging("error", "logfmt")
    limit_process()
    if dry_run is now:
        raise click.UsageError("expected either --dry-run or --now")
    config = load_config(config_file)
    found = next((item for item in config.canaries if item.name == name), None)
    if found is None:
        known = ", ".join(item.name for item in config.canaries) or "none"
        raise click.BadParameter(f"no such canary; configured: {known}", param_hint="NAME")
    if dry_run:
        _show(config, found, time.time())
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(_call(config, found))
    sys.exit(0 if result == CanaryResult.SUCCESS else 1)


def _show(config: Config, canary: CanaryConfig, now: float) -> None:
    name = config.account_of(canary)
    due = list(islice(canary.schedule.after(now), _SHOWN))
    request = call_request(canary, name, due[0] if due else int(now))
    account = next(item for item in config.accounts if item.name == name)
    hidden = {"ApiKey": "***", "SecretKey": "***", "Phone": "***"}
    click.echo(f"{canary.name}: account {name}, at most {canary.max_per_day} calls a day")
    click.echo(f"GET {account.base_url}/{request.operation}")
    for key, value in {**hidden, **request.parameters()}.items():
        click.echo(f"  {key}={value}")
    key = f", key {canary.expect_key}" if canary.expect_key else ""
    click.echo(f"expected: {canary.expect}{key}, within {canary.within:g} s")
    click.echo("due:")
    for moment in due:
        click.echo(f"  {datetime.fromtimestamp(moment, canary.zone):%Y-%m-%d %H:%M:%S %z}")


async def _call(config: Config, canary: CanaryConfig) -> str | None:
    """Place a call and follow it; returns its result.

    Raises:
        ExporterError: it was not placed.
    """
    thread = SerialThread("ledger")
    url = config.ledger.url.reveal()
    database = await thread.submit(partial(open_for_command, url))
    account = _account(config, config.account_of(canary))
    clock = LedgerClock(machine_clocks())
    try:
        await thread.submit(partial(database.keep_time, clock, opened=True))
        return await _Calling(thread, database, account, config, canary, clock).run()
    finally:
        await account.close()
        await thread.submit(database.close)
        thread.close()


def _account(config: Config, name: str) -> Account:
    wish = next(item for item in config.accounts if item.name == name)
    return Account(config, wish, lambda *_: None, _fail)


def _fail(error: BaseException) -> None:
    raise error


class _Calling:
    """One call, placed by hand."""

    def __init__(
        self,
        thread: SerialThread,
        database: Database,
        account: Account,
        config: Config,
        canary: CanaryConfig,
        clock: LedgerClock,
    ) -> None:
        self._clock = clock
        self._thread = thread
        self._statements = CanaryRuns(database)
        self._name = account.poller.account
        self._canary = canary
        self._apart = min(_ASK_EVERY, config.polling.interval)
        self._ended = False
        accounts = {self._name: account}
        self._runs = Runs(
            self._ask_ledger, self._statements, accounts, Catalogue(), clock.now, self._told
        )

    async def run(self) -> str | None:
        _say("placing", canary=self._canary.name, account=self._name)
        row = await self._place()
        while (run := await self._going_on(row)) is not None:
            now = self._clock.now()
            overdue = now >= run.deadline_at
            if now >= run.deadline_at + _GIVE_UP:
                await self._runs.end(run, CanaryResult.LATE)
            elif not now < run.ask_at <= now + self._apart:
                await self._runs.follow(run, self._apart, overdue=overdue)
            await asyncio.sleep(_LOOK_EVERY)
        result, status = await self._ask_ledger(self._statements.find, row)
        if not self._ended:  # an exporter that follows it, too, was faster
            _say(str(result), status=status)
        return str(result) if result else None

    async def _place(self) -> int:
        while True:
            placed = await self._runs.place(
                self._canary, self._name, int(time.time()), by_hand=True
            )
            if isinstance(placed, int):
                return placed
            if placed is NotBegun.LIMITED:
                most = self._canary.max_per_day
                raise ExporterError(f"not placed: `max_per_day`, {most} calls, was reached")
            if placed is None:
                raise ExporterError("not placed: the account may not be asked now")
            await asyncio.sleep(1)  # another one was placed in this very second

    async def _going_on(self, row: int) -> Run | None:
        state = await self._ask_ledger(self._statements.look, (), time.time())
        return next((run for run in state.going_on if run.id == row), None)

    # Any: as of `Call`
    async def _ask_ledger(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return await self._thread.submit(partial(function, *args, **kwargs))

    def _told(self, _row: int, stage: str, about: Mapping[str, object]) -> None:
        self._ended = stage in list(CanaryResult)
        _say(stage, **about)


def _say(stage: str, **about: object) -> None:
    more = " ".join(
        f"{name}={f'{value:.3f}' if isinstance(value, float) else value}"
        for name, value in about.items()
        if value not in (None, "")
    )
    click.echo(f"{datetime.now().astimezone():%H:%M:%S} {stage} {more}".rstrip())
