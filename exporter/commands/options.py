"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
from click.shell_completion import CompletionItem

from exporter.config.document import YamlMapping, YamlSequence, parse_document, told_to
from exporter.config.files import read_text
from exporter.config.problems import Problems
from exporter.errors import ConfigError
from exporter.rows import Output

_MAX_FILE: Final = 1 << 20
"""Bytes; whoever waits for a completion does not wait for more."""

config_file = click.option(
    "--config.file",
    "config_file",
    type=click.Path(path_type=Path),
    required=True,
    help="The configuration file, YAML.",
)

output = click.option(
    "--output",
    type=click.Choice([output.value for output in Output]),
    help="A table for people, lines of JSON or CSV for machines.  [default: table]",
)


def complete_account(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Return the accounts that begin so, of the configuration that the command line names."""
    path = ctx.params.get("config_file")
    names = account_names(path) if isinstance(path, Path) else []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def account_names(path: Path) -> list[str]:
    """Return the names of the accounts of a configuration, as far as it can be read.

    Without the environment and without the files of keys: neither is needed to name an account.
    """
    problems = Problems(str(path))
    try:
        with told_to(problems):
            document = parse_document(read_text(path, _MAX_FILE), None, problems)
    except ConfigError:
        return []
    accounts = document.get("accounts") if isinstance(document, YamlMapping) else None
    items = accounts if isinstance(accounts, YamlSequence) else []
    names = [item.get("name") for item in items if isinstance(item, YamlMapping)]
    return [name for name in names if isinstance(name, str)]
