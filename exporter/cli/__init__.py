"""The command line: its commands, and exit codes."""

from __future__ import annotations

import io
import os
import resource
import sys
from contextlib import suppress
from importlib import import_module
from typing import Final

import click
from click.shell_completion import CompletionItem

import exporter
from exporter.cli import completion as _completion  # noqa: F401 - completes for bash
from exporter.errors import ExporterError

_MODULES: Final = {
    "run": "run",
    "demo": "run",
    "check": "checks",
    "backup": "checks",
    "health": "health",
    "lookup": "lookup",
    "calls": "calls",
    "canary": "canary",
    "callback-url": "checks",
    "schema": "checks",
    "completion": "completion",
    "simulate": "simulate",
}
"""The module of `exporter.cli` for each command. It is imported when it is needed: all of them
together take a second."""


class _Commands(click.Group):
    """The commands; `run` may be left out: options alone mean it."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of all commands."""
        return sorted(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Return a command; None where there is none of that name."""
        if cmd_name not in _MODULES:
            return None
        module = import_module(f"exporter.cli.{_MODULES[cmd_name]}")
        command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)  # noqa: S101 - they are made so
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take options alone for those of `run`."""
        own = {"--help", "--version"}
        if args and args[0].startswith("-") and args[0] not in own:
            args.insert(0, "run")
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Offer the options of `run`, too."""
        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-") and (run := self.get_command(ctx, "run")):
            found += run.shell_complete(ctx, incomplete)
        return found


@click.group(cls=_Commands)
@click.version_option(exporter.__version__, prog_name="esms-exporter")
def commands() -> None:
    """Expose the results of voice calls placed through the eSMS voice API to Prometheus."""


def _prepare_standard_streams() -> None:
    """Open closed standard streams on the null device, and have none fail on a character.

    Otherwise the next file or socket would become standard error, and be written to as such.
    """
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def main() -> None:
    """Run the command line; exit 0 when ended as asked, 1 when failed, 2 on wrong usage."""
    _prepare_standard_streams()
    # No core dump, which would hold keys. The usual soft limit of 1024 files is there for programs
    # that use select(2); this one does not.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        commands.main(prog_name="esms-exporter")
    except ExporterError as error:
        with suppress(OSError):  # the exit code tells it, too
            click.echo(f"esms-exporter: {error}", err=True)
        sys.exit(1)
