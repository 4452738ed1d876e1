"""The command `lookup`: asks the provider what became of calls."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import click

from exporter.cli import options
from exporter.cli.progress import watching
from exporter.config import Config, load_config
from exporter.config.document import Problems
from exporter.daemon import limit_process
from exporter.errors import ConfigError, Problem
from exporter.ids import ReferenceId, reference_id, reference_key
from exporter.logs import configure_logging
from exporter.lookup.asking import look_up
from exporter.lookup.line import COLUMNS, CallName, Line
from exporter.lookup.results_file import ENDINGS, ResultsFile
from exporter.output import Lines, Output, print_table
from exporter.sources.tabular import read_calls

_TABLE: Final = (
    *("reference_id", "account", "state", "status"),
    *("duration", "key", "message"),
)
_FILES: Final = (".csv", ".txt", ".yaml", ".yml", ".json")

Calls = dict[CallName, ReferenceId]
"""What is asked for: each call once, in the order in which they were named."""


@click.command()
@click.argument("reference_ids", metavar="REFERENCE_ID...", nargs=-1)
@options.config_file
@click.option(
    "--account",
    shell_complete=options.complete_account,
    help="The account of ids that name none; needed where there are several.",
)
@click.option(
    "--from-file",
    type=click.Path(exists=True, dir_okay=False),
    help="A file of calls, as `watch.files` takes them: .csv, .txt, .yaml, .json.",
)
@options.output
@click.option(
    "--output-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write lines to this .csv or .json; what it holds already is not asked for again.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Requests per second of each account, where that is less than its `rate_limit`.",
)
@click.pass_context
def lookup(
    ctx: click.Context,
    reference_ids: Sequence[str],
    config_file: Path,
    account: str | None,
    from_file: str | None,
    output: str | None,
    output_file: Path | None,
    rate: float | None,
) -> None:
    """Ask the provider what became of calls.

    Nothing is counted, and no ledger is touched. Exit code 0: the provider has answered for all of
    them; 1: not for all, and why; 2: wrong usage.
    """
    configure_logging("error", "logfmt")
    limit_process()
    as_told = _output(output, output_file)
    if not reference_ids and from_file is None:
        raise click.UsageError("expected ids, or --from-file")
    config = load_config(config_file)
    calls, good = _calls(config, reference_ids, from_file, account)
    if rate is not None:
        config = _slower(config, rate)
    if output_file:
        known, ended, lines = _into_file(config, calls, output_file)
    else:
        known = 0
        ended, lines = _onto_stdout(config, calls, as_told, bar=from_file is not None)
    answered = sum(line.answered for line in lines)
    if output_file or answered < len(calls):
        click.echo(_summary(lines, len(calls), known), err=True)
    ctx.exit(0 if good and ended and answered == len(calls) else 1)


def _output(output: str | None, output_file: Path | None) -> Output:
    """Return what to print, or say what does not go together."""
    if output_file is None:
        return Output(output or Output.TABLE)
    if output_file.suffix not in ENDINGS:
        raise click.BadParameter(
            f"expected a name that ends in {', '.join(ENDINGS)}", param_hint="--output-file"
        )
    by_name = Output.CSV if output_file.suffix == ".csv" else Output.JSON
    if output not in (None, by_name):
        raise click.UsageError(f"--output-file={output_file.name} is {by_name}, not {output}")
    return by_name


def _calls(
    config: Config, named: Iterable[str], from_file: str | None, account: str | None
) -> tuple[Calls, bool]:
    """Return what to ask for, and whether all that was named can be."""
    names = [wish.name for wish in config.accounts]
    if account is not None and account not in names:
        raise click.BadParameter("expected the name of one of the accounts", param_hint="--account")
    calls: Calls = {}
    problems: tuple[Problem, ...] = ()
    for text in named:
        of = account or (names[0] if len(names) == 1 else None)
        if of is None:
            raise click.UsageError("expected --account: there are several")
        try:
            asked = reference_id(text)
        except ValueError as error:
            raise click.BadParameter(f"{text[:40]!r} {error}", param_hint="REFERENCE_ID") from None
        calls.setdefault((of, reference_key(asked)), asked)
    if from_file is not None:
        if not from_file.endswith(_FILES):
            raise click.BadParameter(
                f"expected a name that ends in {', '.join(_FILES)}", param_hint="--from-file"
            )
        found = Problems(from_file)
        for call in read_calls(from_file, names, config.watch.labels, found, account=account):
            calls.setdefault((call.account, reference_key(call.reference_id)), call.reference_id)
        problems = found.listed()
    if problems and not calls:
        raise ConfigError(problems)
    for problem in problems:
        click.echo(problem, err=True)
    return calls, not problems


def _slower(config: Config, rate: float) -> Config:
    accounts = [
        account.model_copy(update={"rate_limit": min(rate, account.rate_limit)})
        for account in config.accounts
    ]
    return config.model_copy(update={"accounts": tuple(accounts)})


def _into_file(config: Config, calls: Calls, path: Path) -> tuple[int, bool, list[Line]]:
    """Look up the calls that the file does not hold; returns how many it does, and as `_run`."""
    file = ResultsFile(path, calls)
    for name in file.answered:
        del calls[name]
    ended, lines = _run(config, calls, file.write, bar=True)
    file.close()
    return len(file.answered), ended, lines


def _onto_stdout(
    config: Config, calls: Calls, output: Output, *, bar: bool
) -> tuple[bool, list[Line]]:
    if output is not Output.TABLE:
        printed = Lines(output, COLUMNS)
        # Lines between which a bar is drawn are no lines.
        ended, lines = _run(config, calls, printed.write, bar=bar and not sys.stdout.isatty())
        printed.close()
        return ended, lines
    ended, lines = _run(config, calls, lambda _: None, bar=bar)
    order = {name: number for number, name in enumerate(calls)}
    lines.sort(key=lambda line: order[line.name])
    print_table(_TABLE, [_cells(line, alone=len(config.accounts) == 1) for line in lines], "state")
    return ended, lines


def _run(
    config: Config, calls: Calls, write: Callable[[Sequence[Line]], None], *, bar: bool
) -> tuple[bool, list[Line]]:
    """Look calls up; returns whether it came to its end, and the lines."""
    lines: list[Line] = []
    with watching(len(calls), bar=bar) as watcher:

        def take(batch: Sequence[Line]) -> None:
            write(batch)
            lines.extend(batch)
            watcher.advance(len(batch))

        return look_up(config, calls, take, watcher.pausing), lines


def _cells(line: Line, *, alone: bool) -> tuple[str, ...]:
    return (
        line.reference_id,
        "" if alone else line.account,
        line.word,
        line.status or "",
        "" if line.duration is None else f"{line.duration:g} s",
        line.key or "",
        " ".join(filter(None, (line.code if line.code != "100" else "", line.message))),
    )


def _summary(lines: Sequence[Line], asked: int, known: int) -> str:
    """Return how many calls were answered, and why the others were not."""
    answered = sum(line.answered for line in lines)
    told = f"{known + answered} of {known + asked} calls answered"
    if known:
        told += f", {known} of them before"
    reasons = Counter(line.outcome.value for line in lines if not line.answered)
    if missing := asked - len(lines):
        reasons["not asked for"] = missing
    if reasons:
        told += "; not: " + ", ".join(f"{count} {why}" for why, count in reasons.most_common())
    return told
