"""The command `export`: write the finished calls in the ledger, by the time they ended."""

from __future__ import annotations

import math
import re
import sys
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Final, TypeAlias

import click
from prometheus_client.core import Metric
from rich.progress import Progress

from exporter.call_totals import CallTotals
from exporter.calls import Finished, Key, Receivers, Result, Status
from exporter.cli import options
from exporter.cli.output import header, line, progress_bar
from exporter.config import load_config
from exporter.ids import Kind
from exporter.ledger.calls import count_finished, finished_pages
from exporter.ledger.clock import LedgerClock
from exporter.ledger.engine import open_reader
from exporter.ledger.totals import DELAY_BUCKETS, DURATION_BUCKETS, SUM, TotalKind, additions
from exporter.ledger.types import ExportedCall
from exporter.logs import configure_logging
from exporter.metrics.catalogue import Catalogue
from exporter.metrics.exposition import EOF, render_metric
from exporter.metrics.reading import Series
from exporter.new_file import new_file

_STEP: Final = 60
"""Seconds between two samples of a series: less than the five minutes that a query looks back."""

_HOUR: Final = 3600
_POINTS: Final = 1000
"""Points of a series to render at once."""

_BUCKETS: Final = {
    TotalKind.DURATION: DURATION_BUCKETS,
    TotalKind.DELAY: DELAY_BUCKETS,
    TotalKind.MESSAGE_DELAY: DELAY_BUCKETS,
}
_OF_ACCOUNTS: Final = frozenset({TotalKind.DELAY, TotalKind.MESSAGE_DELAY})
"""Totals whose series have only the label `account`."""

_OF_LABELS: Final = frozenset({TotalKind.CALLS, TotalKind.KEYPRESSES, TotalKind.MESSAGES})
"""Totals whose cells are values of labels."""

_OWN_LABELS: Final = frozenset({"account", "result", "status", "key", "le"})

_Cells: TypeAlias = "defaultdict[str, _Increments]"
"""The values of a counter or of the buckets and the sum of a histogram."""

_COLUMNS: Final = (
    *("account", "reference_id", "kind", "labels", "result", "status", "duration", "key", "price"),
    *("delivered", "failed", "first_watched", "finished_at"),
    *("first_watched_unix", "finished_at_unix"),
)


def _time(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            "expected a time in ISO 8601, such as `2026-01-31`, `2026-01-31T09:30` (both UTC) or "
            "`2026-01-31T16:30+07:00`"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _label(text: str) -> tuple[str, str]:
    name, _, value = options.utf8(text).partition("=")
    if not value or not re.fullmatch(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*", name):
        raise ValueError("expected NAME=VALUE, such as `job=esms-history`")
    return name, value


@click.command()
@options.config_file
@click.option(
    "--format",
    "output",
    type=click.Choice(["openmetrics", "csv", "jsonl"]),
    required=True,
    help="Counters for `promtool tsdb create-blocks-from openmetrics`, or one line per call.",
)
@click.option(
    "--from",
    "since",
    type=options.Parsed(_time),
    metavar="TIME",
    help="Export calls that ended at this time or later: a date or time in ISO 8601, in UTC "
    "unless it has an offset.  [default: all calls]",
)
@click.option(
    "--to",
    "until",
    type=options.Parsed(_time),
    metavar="TIME",
    help="Export calls that ended before this time.",
)
@click.option(
    "--label",
    "labels",
    type=options.Parsed(_label),
    metavar="NAME=VALUE",
    multiple=True,
    help="Add a label to every series of `openmetrics`; may be repeated.",
)
@click.option(
    "--output-file",
    type=options.PATH,
    help="Write to this new file instead of standard output.",
)
def export(
    config_file: Path,
    output: str,
    since: float | None,
    until: float | None,
    labels: Sequence[tuple[str, str]],
    output_file: Path | None,
) -> None:
    """Write the finished calls and messages in the ledger, by the time they ended.

    Only reads the ledger; an exporter may use it at the same time.
    """
    configure_logging("error", "logfmt")
    since, until = -math.inf if since is None else since, math.inf if until is None else until
    if since >= until:
        raise click.UsageError("expected --from before --to")
    if labels and output != "openmetrics":
        raise click.UsageError("--label is only for --format=openmetrics")
    config = load_config(config_file)
    names, more = config.watch.labels, dict(labels)
    if taken := more.keys() & {*names, *_OWN_LABELS}:
        raise click.BadParameter(f"`{min(taken)}` is a label of the metrics", param_hint="--label")
    with (
        open_reader(config.ledger.url.reveal()) as database,
        _writer(output_file) as write,
        progress_bar(shown=bool(output_file) or not sys.stdout.isatty()) as progress,
    ):
        clock = LedgerClock()
        database.keep_time(clock, opened=True)
        read = partial(finished_pages, database, ahead=clock.ahead)
        total = None if progress.disable else count_finished(database, since, until, clock.ahead)
        task = progress.add_task("calls", total=total)

        def pages() -> Iterator[Sequence[ExportedCall]]:
            for page in read(since, until):
                yield page
                progress.advance(task, len(page))

        if output == "openmetrics":
            oldest = next(read(-math.inf, math.inf, limit=1), [])
            start = max([since, *(call.finished_at for call in oldest)])
            texts = _openmetrics(pages(), History(names, more), start, until, progress)
        else:
            texts = _lines("csv" if output == "csv" else "json", pages())
        for text in texts:
            write(text.encode())
    if output_file:
        click.echo(f"{output_file}: {progress.tasks[task].completed:.0f} calls")


@contextmanager
def _writer(path: Path | None) -> Iterator[Callable[[bytes], object]]:
    """Yield a function that writes to standard output, or to a file that appears when complete."""
    if path is None:
        yield partial(click.echo, nl=False)
        return
    # It holds ids and labels, as the ledger does.
    with new_file(path) as file:
        yield file.write


def _lines(output: str, pages: Iterable[Sequence[ExportedCall]]) -> Iterator[str]:
    yield header(output, _COLUMNS)
    for page in pages:
        yield "".join(line(output, _columns(call)) for call in page)


def _columns(call: ExportedCall) -> dict[str, object]:
    times = {"first_watched": call.first_watched, "finished_at": call.finished_at}
    values = {
        **call._asdict(),
        **{name: datetime.fromtimestamp(at, UTC) for name, at in times.items()},
        **{f"{name}_unix": at for name, at in times.items()},
    }
    return {name: values[name] for name in _COLUMNS}


def _openmetrics(
    pages: Iterable[Sequence[ExportedCall]],
    history: History,
    since: float,
    until: float,
    progress: Progress,
) -> Iterator[str]:
    last = 0.0
    for page in pages:
        history.add(page)
        last = page[-1].finished_at
        # The ledger was empty a moment ago.
        since = page[0].finished_at if since == -math.inf else since
    if history.size:
        # From a full hour on, so that the first hour can be queried.
        first = math.floor(since / _HOUR) * _HOUR // _STEP
        end = math.ceil(min(until / _STEP, max(last, time.time()) // _STEP + 1))
        task = progress.add_task("series", total=history.size)
        yield from history.text(range(first, end + 1), lambda: progress.advance(task))
    yield EOF.decode()


class _Increments:
    """The increments of a number, by the minute in which they were added: 12 bytes each."""

    __slots__ = ("_amounts", "_minutes")

    def __init__(self) -> None:
        self._minutes, self._amounts = array("i"), array("d")

    def add(self, minute: int, amount: float) -> None:
        """Add an increment; the minutes never decrease."""
        if self._minutes and self._minutes[-1] == minute:
            self._amounts[-1] += amount
        else:
            self._minutes.append(minute)
            self._amounts.append(amount)

    def totals(self, minutes: Iterable[int]) -> Iterator[float]:
        """Yield, for each minute, the total of all increments before it."""
        end: tuple[float, float] = math.inf, 0.0
        left = zip(self._minutes, self._amounts, strict=True)
        total, (minute, amount) = 0.0, next(left, end)
        for now in minutes:
            while minute < now:
                total += amount
                minute, amount = next(left, end)
            yield total


class History:
    """The metrics of finished calls, by the minute in which the calls ended.

    A sample at the start of a minute counts the calls that ended before it, from 0 on. The labels
    are those of the exporter's own series: a call whose label set was evicted counts as `other`.
    `labels` are added to every series.
    """

    def __init__(self, names: tuple[str, ...], labels: Mapping[str, str]) -> None:
        catalogue = Catalogue()
        catalogue.read_calls(CallTotals(names))
        self._readings = {
            TotalKind.CALLS: catalogue.calls,
            TotalKind.DURATION: catalogue.call_duration,
            TotalKind.KEYPRESSES: catalogue.keypresses,
            TotalKind.DELAY: catalogue.result_delay,
            TotalKind.PRICE: catalogue.price,
            TotalKind.MESSAGES: catalogue.messages,
            TotalKind.MESSAGE_DELAY: catalogue.message_delay,
            TotalKind.MESSAGE_PRICE: catalogue.message_price,
        }
        self._names, self._labels = names, labels
        self._series: defaultdict[tuple[TotalKind, tuple[str, ...]], _Cells] = defaultdict(
            lambda: defaultdict(_Increments)
        )

    @property
    def size(self) -> int:
        """The number of series; a histogram is one."""
        return len(self._series)

    def add(self, calls: Iterable[ExportedCall]) -> None:
        """Add calls, in the order in which they ended."""
        for call in calls:
            minute = int(call.finished_at // _STEP)
            shown = tuple(call.counted_labels.get(name, "") for name in self._names)
            receivers = None
            if call.delivered is not None and call.failed is not None:
                receivers = Receivers(call.delivered, call.failed)
            key = Key(call.key) if call.key else None
            found = Finished(
                Result(call.result), Status(call.status), call.duration, key, receivers=receivers
            )
            delay = call.finished_at - call.first_watched
            added = additions(call.account, 0, found, delay, call.price, Kind(call.kind))
            for (account, _, total, cell), amount, _ in added:
                values = (account,) if total in _OF_ACCOUNTS else (account, *shown)
                if total in _OF_LABELS:
                    values += tuple(cell.split("/"))
                self._series[total, values][cell].add(minute, amount)

    def text(self, minutes: range, rendered: Callable[[], object]) -> Iterator[str]:
        """Yield the samples at the start of each of some minutes, as OpenMetrics, without its end.

        Calls `rendered` after each series.
        """
        for total, reading in self._readings.items():
            (metric,) = reading.describe()
            head, bounds = _text(metric), _BUCKETS.get(total)
            zero = (bounds, (0,) * (len(bounds) + 1), 0.0) if bounds else 0.0
            for number, values in enumerate(sorted(v for kind, v in self._series if kind is total)):
                if not number:
                    yield head
                samples = reading.samples(reading.labels, Series(values, zero))
                metric.samples = [
                    sample._replace(labels={**sample.labels, **self._labels}) for sample in samples
                ]
                lines = _text(metric).removeprefix(head).split("\n")[:-1]
                series = [line.rpartition(" ")[0] for line in lines]
                cells = self._series[total, values]
                ordered = [*map(repr, bounds), "+Inf", SUM] if bounds else list(cells)
                running = (cells[cell].totals(minutes) for cell in ordered)
                points = zip(minutes, *running, strict=True)
                while chunk := list(islice(points, _POINTS)):
                    yield "".join(
                        f"{name} {value!r} {minute * _STEP}\n"
                        for minute, *numbers in chunk
                        for name, value in zip(
                            series, _cumulative(numbers) if bounds else numbers, strict=True
                        )
                    )
                rendered()


def _cumulative(numbers: Sequence[float]) -> Sequence[float]:
    """Return the values of a histogram's series: its buckets, the count and the sum."""
    *counts, total = numbers
    cumulative = list(accumulate(counts))
    return [*cumulative, cumulative[-1], total]


def _text(metric: Metric) -> str:
    return render_metric(metric, openmetrics=True).decode()
