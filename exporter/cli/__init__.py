"""The command line: commands and exit codes."""

from __future__ import annotations

import errno
import io
import os
import resource
import sys
from contextlib import suppress
from importlib import import_module
from typing import Final

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
)

import exporter
from exporter.errors import ExporterError

_NAME: Final = "esms-exporter"

_MODULES: Final = {
    "run": "run",
    "demo": "demo",
    "check": "checks",
    "backup": "checks",
    "health": "health",
    "lookup": "lookup",
    "calls": "calls",
    "export": "export",
    "canary": "canary",
    "notifications": "notifications",
    "callback-url": "checks",
    "schema": "checks",
    "diagnostics": "diagnostics",
    "simulate": "simulate",
}
"""Module of `exporter.cli` for each command, imported on demand: importing all of them takes a
second."""


class _Commands(click.Group):
    """Group of all commands; without a command name, the arguments are those of `run`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted({*_MODULES, *self.commands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return super().get_command(ctx, cmd_name)
        module = import_module(f"exporter.cli.{_MODULES[cmd_name]}")
        command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)  # noqa: S101 - for mypy
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert `run` before arguments that start with an option."""
        own = {"--help", "--version"}
        if args and args[0].startswith("-") and args[0] not in own:
            args.insert(0, "run")
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Also complete the options of `run`."""
        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-") and (run := self.get_command(ctx, "run")):
            found += run.shell_complete(ctx, incomplete)
        return found


@click.group(cls=_Commands)
@click.version_option(exporter.__version__, prog_name=_NAME)
def commands() -> None:
    """Prometheus exporter for voice calls and messages sent through eSMS."""


class _Bash(BashComplete):
    """Completion for bash, which splits `--option=value` into three words."""

    def get_completion_args(self) -> tuple[list[str], str]:
        args, incomplete = super().get_completion_args()
        kept = [
            word
            for before, word in zip(["", *args], args, strict=False)
            if not (word == "=" and before.startswith("--"))
        ]
        return kept, incomplete


add_completion_class(_Bash)


@commands.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL."""
    kind = get_completion_class(shell)
    assert kind  # noqa: S101 - one of click's own
    click.echo(kind(commands, {}, _NAME, "_ESMS_EXPORTER_COMPLETE").source())


_MIN_FILES: Final = 64
"""The event loop, a ledger and a few connections need some 30 descriptors."""

_UNWRITABLE: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Errors of the file that standard output is redirected to."""


def _prepare_standard_streams() -> None:
    """Open closed standard streams on the null device, and replace unencodable characters.

    Otherwise the next opened file or socket would get the descriptor of standard error, and log
    lines would be written to it.
    """
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _set_limits() -> None:
    """Allow no core dump, which would contain keys, and as many open files as possible.

    Raises:
        ExporterError: too few files can be open.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The usual soft limit of 1024 files exists for programs that use select(2); this one does not.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if 0 <= hard < _MIN_FILES:  # negative for no limit
        raise ExporterError(f"needs {_MIN_FILES} open files; raise `ulimit -n` ({hard})")


def main() -> None:
    """Run the command line: exit code 0 for success, 1 for failure, 2 for wrong usage."""
    _prepare_standard_streams()
    try:
        _set_limits()
        commands.main(prog_name=_NAME)
    except (ExporterError, OSError) as error:
        problem = str(error)
        if isinstance(error, OSError):
            if error.errno not in _UNWRITABLE:
                raise  # a defect
            problem = f"the output cannot be written: {error.strerror}"
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for the flush at the exit
        with suppress(OSError):  # the exit code also shows the failure
            click.echo(f"{_NAME}: {problem}", err=True)
        sys.exit(1)
