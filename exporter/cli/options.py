"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import click
import yaml
from click.shell_completion import CompletionItem

from exporter.web.sockets import ListenAddress

_MAX_FILE: Final = 1 << 20
"""Characters: completion has to be fast."""


class Parsed(click.ParamType[object]):
    """A value that a function parses; its `ValueError` says what is expected."""

    name = "text"

    def __init__(self, parse: Callable[[str], object]) -> None:
        self._parse = parse

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:  # Any: as click declares it
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def utf8(text: str) -> str:
    """Return a text of the command line; raise `ValueError` if it is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("expected UTF-8") from None
    return text


def _positive(text: str) -> float:
    with suppress(ValueError):
        if (number := float(text)) > 0:  # not so NaN
            return number
    raise ValueError("expected a number above 0")


PATH: Final = click.Path(path_type=Path)
ADDRESS: Final = Parsed(ListenAddress.parse)
TEXT: Final = Parsed(utf8)
POSITIVE: Final = Parsed(_positive)

listen = click.option(
    "--web.listen-address",
    "addresses",
    type=ADDRESS,
    metavar="ADDRESS",
    multiple=True,
    default=(":10375",),
    show_default=True,
    help="Address to listen on; may be repeated.",
)
web_config = click.option(
    "--web.config.file",
    "web_config",
    type=PATH,
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
    "--config.file", "config_file", type=PATH, required=True, help="Configuration file, YAML."
)


def complete_account(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Complete the name of an account from the configuration file on the command line.

    Needs neither the environment nor the files of keys.
    """
    try:
        with Path(ctx.params["config_file"]).open(encoding="utf-8") as file:
            # PyYAML without libyaml has only the loader in Python.
            loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            document = yaml.load(file.read(_MAX_FILE), loader)  # noqa: S506 - a safe loader
        names = [account["name"] for account in document["accounts"]]
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, RecursionError):
        return []
    return [CompletionItem(str(name)) for name in names if str(name).startswith(incomplete)]
