"""The command `notifications`: list, retry and drop notifications that are not delivered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import click

from exporter.cli.options import TEXT, config_file
from exporter.cli.output import output_option, row_printer
from exporter.config import load_config
from exporter.errors import ExporterError
from exporter.ledger.clock import LedgerClock
from exporter.ledger.engine import Database, open_database
from exporter.ledger.notifications import (
    NotificationRecord,
    NotificationState,
    drop_notifications,
    find_notifications,
    list_notifications,
    retry_notifications,
)
from exporter.ledger.types import BATCH_SIZE
from exporter.logs import configure_logging
from exporter.notify.home_assistant import GIVE_UP_AFTER
from exporter.notify.home_assistant import NAME as HOME_ASSISTANT
from exporter.web.schemas import Notification

_TABLE: Final = (
    *("id", "state", "target", "account", "reference_id", "attempts"),
    *("give_up_at", "last_answer"),
)


class _Ledger(NamedTuple):
    """An open ledger, and the configured targets with their `give_up_after`, in seconds."""

    database: Database
    clock: LedgerClock
    targets: dict[str, float]
    history: bool  # whether it has the history of calls

    def pages(
        self, account: str | None, target: str | None, state: str | None
    ) -> Iterator[list[NotificationRecord]]:
        accounts = None if account is None else [account]
        after: int | None = 0
        while after is not None:
            with self.database.read() as connection:
                page = list_notifications(connection, self.clock, accounts, target, state, after)
            yield page.records
            after = page.next


@contextmanager
def _opened(file: Path) -> Iterator[_Ledger]:
    configure_logging("warning", "logfmt")
    config = load_config(file)
    targets = {target.name: target.give_up_after for target in config.notify}
    if config.home_assistant:
        targets[HOME_ASSISTANT] = GIVE_UP_AFTER
    with closing(open_database(config.ledger.url.reveal(), exclusive=False)) as database:
        database.keep_time(clock := LedgerClock(), opened=True)
        yield _Ledger(database, clock, targets, config.ledger.history)


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that select notifications."""
    states = click.Choice([state.value for state in NotificationState])
    for option in (
        click.option("--state", type=states, help="Only notifications in this state."),
        click.option("--account", type=TEXT, help="Only notifications of calls of this account."),
        click.option("--target", type=TEXT, help="Only notifications for this target."),
    ):
        command = option(command)
    return command


_ids = click.argument("ids", nargs=-1, type=click.IntRange(1, 2**63 - 1), metavar="[ID]...")


@click.group()
def notifications() -> None:
    """List, retry and drop notifications that are pending or given up.

    They are in the ledger, with or without a running exporter.
    """


@notifications.command("list")
@config_file
@_filters
@output_option
def list_(config_file: Path, output: str | None, **filters: str | None) -> None:
    """List notifications that are pending or given up."""
    with (
        row_printer(output, tuple(Notification.model_fields), _TABLE) as write,
        _opened(config_file) as ledger,
    ):
        for page in ledger.pages(**filters):
            write([Notification.model_validate(record) for record in page])


@notifications.command()
@config_file
@_ids
@_filters
def retry(config_file: Path, ids: Sequence[int], **filters: str | None) -> None:
    """Send notifications again: those with these IDs, or all that the options select.

    A running exporter sends them within seconds, with the same event id and a new deadline.
    Notifications that are being sent, or whose target is not configured, are skipped.
    """
    with _opened(config_file) as ledger:
        if (target := filters["target"]) and target not in ledger.targets:
            known = ", ".join(ledger.targets) or "none"
            raise click.BadParameter(f"no such target; configured: {known}", param_hint="--target")
        retry_these = partial(retry_notifications, history=ledger.history)
        _change(ledger, "retried", ids, filters, retry_these, ledger.targets)


@notifications.command()
@config_file
@_ids
@_filters
def drop(config_file: Path, ids: Sequence[int], **filters: str | None) -> None:
    """Delete notifications: those with these IDs, or all that the options select.

    Notifications that are being sent are skipped.
    """
    with _opened(config_file) as ledger:
        _change(ledger, "dropped", ids, filters, drop_notifications)


def _change(
    ledger: _Ledger,
    done: str,
    ids: Sequence[int],
    filters: dict[str, str | None],
    change: Callable[..., set[int]],
    *more: object,
) -> None:
    """Change notifications, one batch per transaction, and print how many were changed.

    Raises:
        ExporterError: some of `ids` were not changed; the message says why.
    """
    if bool(ids) is any(filters.values()):
        raise click.UsageError("expected ids, or a filter such as --target")
    pages = (ids[start : start + BATCH_SIZE] for start in range(0, len(ids), BATCH_SIZE))
    if not ids:
        pages = ([record.id for record in page] for page in ledger.pages(**filters))
    count, left = 0, list[str]()
    for page in pages:
        changed = ledger.database.run(change, ledger.clock, page, *more)
        count += len(changed)
        if ids:
            unchanged = [row for row in page if row not in changed]
            left += _reasons(ledger, unchanged, retried=done == "retried")
    click.echo(f"notifications {done}: {count}")
    if left:
        raise ExporterError("\n".join(left))


def _reasons(ledger: _Ledger, rows: Sequence[int], *, retried: bool) -> Iterator[str]:
    """Yield the reasons why notifications were not retried or dropped."""
    with ledger.database.read() as connection:
        known = find_notifications(connection, ledger.clock, rows)
    for row in rows:
        if (record := known.get(row)) is None:
            yield f"{row}: no such notification"
        elif retried and record.target not in ledger.targets:
            yield f"{row}: the target {record.target} is not configured"
        else:
            yield f"{row}: is being sent now"
