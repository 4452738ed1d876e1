"""The command `lookup`: fetch the results of calls from the provider."""

from __future__ import annotations

import csv
import fcntl
import io
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

import click
import uvloop
from pydantic_core import from_json

from exporter.cli import options
from exporter.cli.output import (
    csv_text,
    header,
    line,
    output_option,
    print_table,
    progress_bar,
    table_row,
)
from exporter.config import Config, load_config
from exporter.config.document import Problems
from exporter.errors import ConfigError, ExporterError, Problem
from exporter.esms.client import EsmsClient
from exporter.esms.codes import Outcome
from exporter.ids import Kind, ReferenceId, reference_id, reference_key
from exporter.logs import configure_logging
from exporter.lookup import COLUMNS, CallName, LookupResult, look_up
from exporter.polling.circuit_breaker import GOOD
from exporter.sources.tabular import read_calls

_TABLE: Final = (
    *("reference_id", "account", "kind", "state", "status"),
    *("duration", "key", "delivered", "failed", "price", "message"),
)

Calls = dict[CallName, ReferenceId]
"""The calls to look up, without duplicates, in the order given."""


def _ending(*suffixes: str) -> Callable[..., Path | None]:
    def check(_ctx: object, _param: object, path: Path | None) -> Path | None:
        if path and path.suffix not in suffixes:
            raise click.BadParameter(f"expected a file ending in {', '.join(suffixes)}")
        return path

    return check


def _reference_id(text: str) -> ReferenceId:
    try:
        return reference_id(text)
    except ValueError as error:
        raise ValueError(f"{text[:40]!r}: {error}") from None


@click.command()
@click.argument(
    "reference_ids", metavar="REFERENCE_ID...", nargs=-1, type=options.Parsed(_reference_id)
)
@options.config_file
@click.option(
    "--account",
    shell_complete=options.complete_account,
    help="Account of ids without one; required if there are several accounts.",
)
@click.option(
    "--kind",
    type=click.Choice([kind.value for kind in Kind]),
    help="Kind of ids without one.  [default: `default_kind` of the account]",
)
@click.option(
    "--from-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    callback=_ending(".csv", ".txt", ".yaml", ".yml", ".json"),
    help="File of calls in a format of `watch.files`: .csv, .txt, .yaml, .json.",
)
@output_option
@click.option(
    "--output-file",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_ending(".csv", ".json", ".jsonl", ".ndjson"),
    help="Append results to this .csv or .json file; calls that it has results for are skipped.",
)
@click.option(
    "--rate",
    type=options.POSITIVE,
    metavar="NUMBER",
    default=math.inf,
    help="Requests per second and account, if lower than the account's `rate_limit`.",
)
def lookup(
    reference_ids: Sequence[ReferenceId],
    config_file: Path,
    account: str | None,
    kind: str | None,
    from_file: Path | None,
    output: str | None,
    output_file: Path | None,
    rate: float,
) -> None:
    """Fetch the results of calls and messages from the provider.

    Look-ups change neither metrics nor the ledger. The exit code is 0 if the
    provider answered for all calls, 1 if not, 2 for wrong usage.
    """
    configure_logging("error", "logfmt")
    by_name = "csv" if output_file and output_file.suffix == ".csv" else "json"
    if output_file and output not in (None, by_name):
        raise click.UsageError(f"--output-file={output_file.name} is {by_name}, not {output}")
    if not reference_ids and not from_file:
        raise click.UsageError("expected ids or --from-file")
    config = load_config(config_file)
    calls, problems = _read_calls(config, reference_ids, from_file, account, kind)
    asked, as_table = len(calls), not output_file and output in (None, "table")
    results: list[LookupResult] = []
    with results_file(output_file) if output_file else nullcontext() as file:
        if file:
            calls = {name: call for name, call in calls.items() if name not in file.answered}
        else:
            click.echo(header(output, COLUMNS), nl=False)

        # A progress bar would be drawn between the lines of results.
        bar = file or (from_file and (as_table or not sys.stdout.isatty()))
        with progress_bar(shown=bool(bar)) as progress:
            task = progress.add_task("calls", total=len(calls))

            def write(batch: Sequence[LookupResult]) -> None:
                if file:
                    file.write(batch)
                elif not as_table:
                    click.echo("".join(line(output, result) for result in batch), nl=False)
                results.extend(batch)
                progress.advance(task, len(batch))

            def report_pause(why: LookupResult, seconds: float) -> None:
                reason = f"{why.account}: {why.outcome}: {why.message}"
                progress.console.print(f"{reason}; continuing in {seconds:.0f} s")

            connect = partial(EsmsClient, timeout=config.polling.timeout, tls=config.tls)
            done = look_up(config.accounts, connect, calls, write, report_pause, rate)
            ended = uvloop.run(done)
    if as_table:
        order = {name: number for number, name in enumerate(calls)}
        results.sort(key=lambda result: order[result.name])
        kinds = {result.kind for result in results}
        hidden = {"account": len(config.accounts) == 1, "kind": len(kinds) == 1}
        columns = [name for name in _TABLE if not hidden.get(name)]
        print_table(columns, [table_row(columns, _in_table(result)) for result in results])
    known = asked - len(calls)
    answered = known + sum(result.answered for result in results)
    if output_file or answered < asked:
        click.echo(_summary(results, asked, answered, known), err=True)
    sys.exit(0 if not problems and ended and answered == asked else 1)


def _read_calls(
    config: Config,
    named: Iterable[ReferenceId],
    from_file: Path | None,
    account: str | None,
    kind: str | None,
) -> tuple[Calls, tuple[Problem, ...]]:
    """Return the calls to look up and the problems of the file, which are also printed."""
    kinds = {one.name: Kind(kind or one.default_kind) for one in config.accounts}
    names = list(kinds)
    if account is not None and account not in names:
        raise click.BadParameter("expected the name of one of the accounts", param_hint="--account")
    calls: Calls = {}
    problems: tuple[Problem, ...] = ()
    for asked in named:
        if not account and len(names) > 1:
            raise click.UsageError("expected --account, because several accounts are configured")
        name = account or names[0]
        calls.setdefault((name, kinds[name], reference_key(asked)), asked)
    if from_file is not None:
        found = Problems(str(from_file))
        for call in read_calls(str(from_file), names, config.watch.labels, found, account=account):
            asked = call.reference_id
            call_kind = call.kind or kinds[call.account]
            calls.setdefault((call.account, call_kind, reference_key(asked)), asked)
        problems = found.listed()
    if problems and not calls:
        raise ConfigError(problems)
    for problem in problems:
        click.echo(problem, err=True)
    return calls, problems


@contextmanager
def results_file(path: Path) -> Iterator[ResultsFile]:
    """Open a resumable output file, or create it; raise `ExporterError` if it cannot be used."""
    try:
        with path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield ResultsFile(path, file)
    except BlockingIOError:
        raise ExporterError(f"{path}: is in use by another look-up") from None
    except OSError as error:
        raise ExporterError(f"{path}: cannot be used: {error.strerror}") from None


class ResultsFile:
    """A resumable output file: CSV if its suffix is `.csv`, else JSON.

    An incomplete last line is removed. If a call has several lines, the last one counts.

    Attributes:
        answered: the calls that the file has results for.
    """

    def __init__(self, path: Path, file: io.FileIO) -> None:
        self._file = file
        self._output = "csv" if path.suffix == ".csv" else "json"
        first = header(self._output, COLUMNS)
        start = (first or '{"reference_id":').encode()
        file.seek(0)
        data = file.read()
        if not (data.startswith(start) or start.startswith(data)):
            raise ExporterError(f"{path}: is not a results file of this version; use another file")
        complete = data[: data.rfind(b"\n") + 1]
        answered: dict[CallName, bool] = {}
        for number, text in enumerate(complete.split(b"\n")[:-1], 1):
            if number == 1 and first:
                continue
            try:
                name, good = self._parse(text)
                answered[name] = good
            except (ValueError, KeyError, TypeError, AttributeError, csv.Error):
                message = f"{path}: is not a results file: line {number} is invalid"
                raise ExporterError(message) from None
        self.answered = {name for name in answered if answered[name]}
        file.truncate(len(complete))
        if not complete:
            self._append(first)

    def write(self, results: Iterable[LookupResult]) -> None:
        """Append results. Blocking."""
        self._append("".join(line(self._output, result) for result in results))

    def _parse(self, text: bytes) -> tuple[CallName, bool]:
        """Return the call of a line, and whether the line has a result."""
        if self._output == "csv":
            (row,) = csv.reader([text.decode()], strict=True)
            values = dict(zip(COLUMNS, map(csv_text, row), strict=True))
        else:
            values = from_json(text)
        # JSON of versions without messages has no kind.
        kind = Kind(values.get("kind", Kind.CALL))
        name = values["account"], kind, reference_key(values["reference_id"])
        return name, Outcome(values["outcome"]) in GOOD

    def _append(self, text: str) -> None:
        left = memoryview(text.encode())
        while left:
            left = left[self._file.write(left) :]


def _in_table(result: LookupResult) -> dict[str, object]:
    code = result.code if result.code != "100" else ""
    message = " ".join(filter(None, (code, result.message)))
    return {**asdict(result), "state": result.summary, "message": message}


def _summary(results: Sequence[LookupResult], asked: int, answered: int, known: int) -> str:
    """Summarize the results; `known` calls were already in the output file."""
    text = f"{answered} of {asked} calls answered"
    if known:
        text += f", {known} of them already in the file"
    reasons = Counter(result.outcome.value for result in results if not result.answered)
    if missing := asked - known - len(results):
        reasons["not requested"] = missing
    if reasons:
        text += "; not: " + ", ".join(f"{count} {why}" for why, count in reasons.most_common())
    return text
