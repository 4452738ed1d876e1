"""What a person sees while a look-up runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from exporter.lookup.line import Line


class Watcher:
    """Counts lines and tells of pauses on standard error, beside a bar if there is one."""

    def __init__(self, bar: Progress | None, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task("calls", total=total) if bar else None

    def advance(self, count: int) -> None:
        """Tell that so many calls have their line."""
        if self._bar and self._task is not None:
            self._bar.advance(self._task, count)

    def pausing(self, account: str, why: Line, seconds: float) -> None:
        """Tell that an account is not asked for a while."""
        told = f"{account}: {why.outcome}: {why.message}; going on in {seconds:.0f} s"
        if self._bar:
            self._bar.console.print(told, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(told, err=True)


@contextmanager
def watching(total: int, *, bar: bool) -> Iterator[Watcher]:
    """Show how far a look-up is.

    Args:
        total: how many calls.
        bar: show a bar, where standard error is a terminal.
    """
    if not (bar and sys.stderr.isatty()):
        yield Watcher(None, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as progress:
        yield Watcher(progress, total)
