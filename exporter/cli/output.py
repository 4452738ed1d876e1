"""Output of rows as a table, CSV or JSON, and progress bars."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import click
from pydantic_core import to_json, to_jsonable_python
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_COLOURS: Final = {
    "success": "green",
    "failure": "red",
    "finished": None,
    "not_found": "yellow",
    "given_up": "red",
}
"""Colours in the column `state`; other values are dim."""

_FORMATS: Final = {"duration": "{:g} s", "price": "{:,.0f} VND"}
"""How tables show the numbers of a column."""

_GAP: Final = 2
"""Spaces between two columns of a table."""

# A text that already starts with `'` gets another one, so that `csv_text` can undo it.
_FORMULA: Final = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")

output_option = click.option(
    "--output",
    type=click.Choice(["table", "json", "csv"]),
    help="A table for people, or lines of JSON or CSV for programs.  [default: table]",
)


def header(output: str | None, columns: Iterable[str]) -> str:
    """Return the header line of `csv`; empty for `json`."""
    return _csv(columns) if output == "csv" else ""


def line(
    output: str | None, row: Any
) -> str:  # Any: a dataclass or a model; its fields are the columns
    """Return a row as a line of `csv` or `json`.

    In CSV, None is an empty field and a mapping is JSON. Text that a spreadsheet would run as a
    formula gets a leading `'`, as OWASP advises (CSV injection).
    """
    if output == "csv":
        return _csv(map(_csv_value, to_jsonable_python(row).values()))
    return to_json(row).decode() + "\n"


def csv_text(field: str) -> str:
    """Return the original text of a CSV field that `line` wrote."""
    return field[1:] if field.startswith("'") and _FORMULA.match(field) else field


def _csv_value(value: object) -> object:
    if isinstance(value, dict):
        return to_json(value).decode()
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _csv(values: Iterable[object]) -> str:
    text = io.StringIO()
    # Python quotes only the line breaks that are in `lineterminator`: pass both characters.
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return text.getvalue().removesuffix("\r\n") + "\n"


@contextmanager
def row_printer(
    output: str | None,
    columns: Iterable[str],
    table: Sequence[str],
    values: Callable[[Any], Mapping[str, object]] = dict,  # Any: a model, as in `line`
) -> Iterator[Callable[[Sequence[Any]], None]]:
    """Yield a function that prints rows; a table is printed at the end of the block.

    `columns` are those of `csv`, `table` those of a table, whose values `values` returns by column.
    """
    rows: list[list[str]] = []
    first = header(output, columns)

    def write(batch: Sequence[Any]) -> None:
        nonlocal first
        if output in (None, "table"):
            rows.extend(table_row(table, values(row)) for row in batch)
        else:
            click.echo(first + "".join(line(output, row) for row in batch), nl=False)
            first = ""

    yield write
    if output in (None, "table"):
        print_table(table, rows)


def table_row(columns: Iterable[str], values: Mapping[str, object]) -> list[str]:
    """Return the cells of a row of a table, from values by the names of their columns."""
    return [_cell(name, values[name]) for name in columns]


def _cell(column: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    if isinstance(value, dict):
        return " ".join(f"{name}={text}" for name, text in value.items())
    return _FORMATS.get(column, "{}").format(value)


def progress_bar(*, shown: bool) -> Progress:
    """Return a progress bar on standard error; `shown` has no effect if that is no terminal."""
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    return Progress(
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        TimeRemainingColumn(),
        console=console,
        disable=not (shown and console.is_terminal),
        redirect_stdout=False,
        redirect_stderr=False,
    )


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table without the columns that are empty in all rows.

    On a terminal, values of the column `state` are coloured.
    """
    shown = [n for n, name in enumerate(columns) if name == "state" or any(row[n] for row in rows)]
    widths = {n: max(map(cell_len, (columns[n], *(row[n] for row in rows)))) + _GAP for n in shown}
    console = Console()
    coloured = console.color_system and not console.no_color

    def cell(row: Sequence[str], n: int) -> str:
        text, padding = row[n], " " * (widths[n] - cell_len(row[n]))
        if coloured and text and columns[n] == "state" and row is not columns:
            text = click.style(text, _COLOURS.get(text), dim=text not in _COLOURS or None)
        return text + padding

    lines = ("".join(cell(row, n) for n in shown).rstrip() for row in (columns, *rows))
    click.echo("\n".join(lines))  # each call flushes
