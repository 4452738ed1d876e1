"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
from click.shell_completion import CompletionItem

from exporter.errors import ConfigError
from exporter.web.sockets import ListenAddress

_MAX_FILE: Final = 1 << 20
"""Bytes: completion has to be fast."""


def _addresses(_ctx: object, _param: object, texts: Sequence[str]) -> tuple[ListenAddress, ...]:
    try:
        return tuple(map(ListenAddress.parse, texts))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


listen = click.option(
    "--web.listen-address",
    "addresses",
    callback=_addresses,
    metavar="ADDRESS",
    multiple=True,
    default=(":10375",),
    show_default=True,
    help="Address to listen on; may be repeated.",
)


web_config = click.option(
    "--web.config.file",
    "web_config",
    type=click.Path(path_type=Path),
    help="Web configuration file (TLS, users, limits) in the format of the exporter-toolkit.",
)
log_level = click.option(
    "--log.level",
    "log_level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Log only events of at least this level.",
)
log_format = click.option(
    "--log.format",
    "log_format",
    type=click.Choice(["logfmt", "json"]),
    default="logfmt",
    show_default=True,
    help="Format of log lines.",
)

config_file = click.option(
    "--config.file",
    "config_file",
    type=click.Path(path_type=Path),
    required=True,
    help="Configuration file, YAML.",
)


def complete_account(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Complete the name of an account from the configuration file on the command line."""
    path = ctx.params.get("config_file")
    names = account_names(path) if isinstance(path, Path) else []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def account_names(path: Path) -> list[str]:
    """Return the names of the accounts in a configuration file that may be invalid.

    Needs neither the environment nor the files of keys.
    """
    # Imported here because it takes half a second and most commands do not need it.
    from exporter.config.document import Problems, YamlMapping, load_mapping  # noqa: PLC0415

    try:
        document = load_mapping(path, _MAX_FILE, None, Problems(str(path)), "accounts")
    except ConfigError:
        return []
    accounts = document.get("accounts") if document else None
    items = accounts if isinstance(accounts, list) else []
    names = [item.get("name") for item in items if isinstance(item, YamlMapping)]
    return [name for name in names if isinstance(name, str)]
