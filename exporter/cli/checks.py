"""The commands `check`, `schema`, `callback-url` and `backup`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from urllib.parse import quote

import click

from exporter.cli import options
from exporter.config import NamedFiles, json_schema, load_config
from exporter.config.validation import check_url
from exporter.errors import ExporterError
from exporter.ledger.sqlite import back_up
from exporter.sources.files import check_files
from exporter.web.callback import callback_url as url_of
from exporter.web.web_config import load_web_config


@click.command()
@options.config_file
@options.web_config
def check(config_file: Path, web_config: Path | None) -> None:
    """Check the configuration and the files of calls.

    The exit code is 1 if there are problems.
    """
    files = NamedFiles()
    config = load_config(config_file, files=files)
    if web_config:
        tls = load_web_config(web_config, files).tls_server_config
        if tls and (warning := tls.expiry_warning(time.time())):
            click.echo(f"{web_config}: {warning}", err=True)
    for path in sorted(files.exposed):
        click.echo(f"{path}: is world-readable", err=True)
    names = [account.name for account in config.accounts]
    in_files = check_files(config.watch.files, names, config.watch.labels)
    calls = len(config.watch.calls) + in_files
    click.echo(f"{config_file}: good: {len(config.accounts)} accounts, {calls} calls")


@click.command()
@options.config_file
@click.argument("file", type=options.PATH)
def backup(config_file: Path, file: Path) -> None:
    """Copy the ledger to a new FILE, even while the exporter runs.

    For SQLite only; use `pg_dump` for PostgreSQL.
    """
    calls = back_up(load_config(config_file).ledger.url.reveal(), file)
    click.echo(f"{file}: {calls} calls")


@click.command("callback-url")
@options.config_file
@click.option(
    "--url",
    type=options.TEXT,
    required=True,
    help="URL at which the provider reaches the exporter.",
)
@click.option("--account", "name", help="Print only the URL of this account.")
def callback_url(config_file: Path, url: str, name: str | None) -> None:
    """Print the `CallbackUrl` of each account.

    It is percent-encoded for a MakeCall request, and contains the account's `callback_token`: keep
    it secret.
    """
    try:
        check_url(url, "http", "https", without="?#")
    except ValueError:
        raise click.BadParameter("expected `https://HOST...`", param_hint="--url") from None
    tokens = {
        account.name: account.callback_token
        for account in load_config(config_file).accounts
        if account.callback_token and name in {None, account.name}
    }
    if not tokens:
        raise ExporterError("no account with a `callback_token`")
    for account, token in tokens.items():
        click.echo(quote(url_of(url, account, token), safe=""))


@click.command()
def schema() -> None:
    """Print the JSON Schema of the configuration."""
    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
