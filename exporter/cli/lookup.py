"""The command `lookup`: asks the provider for the results of calls."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from exporter.cli import options
from exporter.config import Config, load_config
from exporter.config.document import Problems
from exporter.daemon import limit_process
from exporter.errors import ConfigError, Problem
from exporter.ids import ReferenceId, reference_id, reference_key
from exporter.logs import configure_logging
from exporter.lookup import COLUMNS, SUFFIXES, CallName, LookupResult, ResultsFile, look_up
from exporter.output import Lines, Output, print_table
from exporter.sources.tabular import read_calls

_TABLE: Final = (
    *("reference_id", "account", "state", "status"),
    *("duration", "key", "message"),
)
_FILES: Final = (".csv", ".txt", ".yaml", ".yml", ".json")

Calls = dict[CallName, ReferenceId]
"""The calls to look up: each once, in the order in which they were named."""


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
    help="Write lines to this .csv or .json; calls that it has an answer for are skipped.",
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
    """Ask the provider for the results of calls.

    Nothing is counted, and no ledger is touched. Exit code 0: the provider has answered for all of
    them; 1: not for all, and why; 2: wrong usage.
    """
    configure_logging("error", "logfmt")
    limit_process()
    format_ = _output(output, output_file)
    if not reference_ids and from_file is None:
        raise click.UsageError("expected ids, or --from-file")
    config = load_config(config_file)
    calls, good = _calls(config, reference_ids, from_file, account)
    if rate is not None:
        config = _slower(config, rate)
    if output_file:
        known, ended, results = _into_file(config, calls, output_file)
    else:
        known = 0
        ended, results = _onto_stdout(config, calls, format_, bar=from_file is not None)
    answered = sum(result.answered for result in results)
    if output_file or answered < len(calls):
        click.echo(_summary(results, len(calls), known), err=True)
    ctx.exit(0 if good and ended and answered == len(calls) else 1)


def _output(output: str | None, output_file: Path | None) -> Output:
    """Return what to print, or say what does not go together."""
    if output_file is None:
        return Output(output or Output.TABLE)
    if output_file.suffix not in SUFFIXES:
        raise click.BadParameter(
            f"expected a name that ends in {', '.join(SUFFIXES)}", param_hint="--output-file"
        )
    by_name = Output.CSV if output_file.suffix == ".csv" else Output.JSON
    if output not in (None, by_name):
        raise click.UsageError(f"--output-file={output_file.name} is {by_name}, not {output}")
    return by_name


def _calls(
    config: Config, named: Iterable[str], from_file: str | None, account: str | None
) -> tuple[Calls, bool]:
    """Return the calls to look up, and whether all that were named can be."""
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


def _into_file(config: Config, calls: Calls, path: Path) -> tuple[int, bool, list[LookupResult]]:
    """Look up the calls that the file has no answer for; returns how many it has, and as `_run`."""
    file = ResultsFile(path)
    answered = [name for name in calls if name in file.answered]
    for name in answered:
        del calls[name]
    ended, results = _run(config, calls, file.write, bar=True)
    file.close()
    return len(answered), ended, results


def _onto_stdout(
    config: Config, calls: Calls, output: Output, *, bar: bool
) -> tuple[bool, list[LookupResult]]:
    if output is not Output.TABLE:
        printed = Lines(output, COLUMNS)
        # A bar is not drawn between lines.
        ended, results = _run(config, calls, printed.write, bar=bar and not sys.stdout.isatty())
        printed.close()
        return ended, results
    ended, results = _run(config, calls, lambda _: None, bar=bar)
    order = {name: number for number, name in enumerate(calls)}
    results.sort(key=lambda result: order[result.name])
    one_account = len(config.accounts) == 1
    print_table(_TABLE, [_cells(result, one_account=one_account) for result in results], "state")
    return ended, results


def _run(
    config: Config, calls: Calls, write: Callable[[Sequence[LookupResult]], None], *, bar: bool
) -> tuple[bool, list[LookupResult]]:
    """Look calls up; returns whether all was done, and the results.

    Progress and pauses are shown on standard error; with a bar, where that is a terminal.
    """
    results: list[LookupResult] = []
    progress = Progress(
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not (bar and sys.stderr.isatty()),
        redirect_stdout=False,
        redirect_stderr=False,
    )
    task = progress.add_task("calls", total=len(calls))

    def take(batch: Sequence[LookupResult]) -> None:
        write(batch)
        results.extend(batch)
        progress.advance(task, len(batch))

    def report_pause(account: str, why: LookupResult, seconds: float) -> None:
        text = f"{account}: {why.outcome}: {why.message}; continuing in {seconds:.0f} s"
        if progress.disable:
            click.echo(text, err=True)
        else:
            progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    with progress:
        return look_up(config, calls, take, report_pause), results


def _cells(result: LookupResult, *, one_account: bool) -> tuple[str, ...]:
    code = result.code if result.code != "100" else ""
    return (
        result.reference_id,
        "" if one_account else result.account,
        result.summary,
        result.status or "",
        "" if result.duration is None else f"{result.duration:g} s",
        result.key or "",
        " ".join(filter(None, (code, result.message))),
    )


def _summary(results: Sequence[LookupResult], asked: int, known: int) -> str:
    """Return how many calls were answered, and why the others were not."""
    answered = sum(result.answered for result in results)
    text = f"{known + answered} of {known + asked} calls answered"
    if known:
        text += f", {known} of them before"
    reasons = Counter(result.outcome.value for result in results if not result.answered)
    if missing := asked - len(results):
        reasons["not asked for"] = missing
    if reasons:
        text += "; not: " + ", ".join(f"{count} {why}" for why, count in reasons.most_common())
    return text
