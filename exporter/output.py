"""Rows as text: CSV and JSON for machines, a table for people."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from typing import Any, Final

import click
from pydantic_core import to_json, to_jsonable_python
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text


class Output(StrEnum):
    """What is printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


STYLES: Final = {
    "success": "green",
    "failure": "red",
    "finished": "",
    "not_found": "yellow",
}
"""How the words of a table's column of states look; others are dim."""

# Wider than any row: what is not read on a terminal is not to be broken into lines.
_UNBROKEN: Final = 100_000

_GAP: Final = 2
_MIN_LAST_COLUMN: Final = 12
"""Columns of a terminal that the last column of a table needs, to be read."""

# With `'` in front it gets one more, so that the text can be restored from the field.
_FORMULA: Final = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")

_Row = Any  # a dataclass or a model, whose fields are the columns


def json_line(row: _Row) -> str:
    """Return a row as a line of JSON."""
    return to_json(row).decode() + "\n"


def csv_line(row: _Row) -> str:
    """Return a row as a line of CSV; what there is not is empty, a mapping is JSON.

    A spreadsheet would run a text that begins like a formula: it gets a `'` in front, as OWASP
    advises (CSV injection). Numbers stay as they are.
    """
    return _csv(map(_csv_value, to_jsonable_python(row).values()))


def _csv_value(value: object) -> object:
    if isinstance(value, dict):
        return to_json(value).decode()
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def csv_text(field: str) -> str:
    """Return the text that `csv_line` has written as this field."""
    return field[1:] if field.startswith("'") and _FORMULA.match(field) else field


def csv_header(columns: Iterable[str]) -> str:
    """Return the first line of CSV."""
    return _csv(columns)


def _csv(values: Iterable[object]) -> str:
    line = io.StringIO()
    # Python quotes the characters of what ends a line, and no other that does.
    csv.writer(line, lineterminator="\r\n").writerow(values)
    return line.getvalue().removesuffix("\r\n") + "\n"


class Lines:
    """Prints rows as they come.

    Args:
        output: `json` or `csv`.
        columns: the names of the columns, for CSV.
    """

    def __init__(self, output: Output, columns: Collection[str]) -> None:
        self._line = csv_line if output is Output.CSV else json_line
        self._header = csv_header(columns) if output is Output.CSV else ""

    def write(self, rows: Iterable[_Row]) -> None:
        """Print some rows; blocks while the output is not read."""
        click.echo(self._header + "".join(map(self._line, rows)), nl=False)
        self._header = ""

    def close(self) -> None:
        """Print what is missing where there was no row."""
        self.write(())


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], state: str) -> None:
    """Print a table; columns that are empty in all rows are left out.

    Args:
        columns: their names; the last is the only one that is broken into lines.
        rows: a text for each column.
        state: the column that is coloured by what it says.
    """
    shown = [n for n, name in enumerate(columns) if name == state or any(row[n] for row in rows)]
    *fixed, last = shown
    console = Console(highlight=False)
    needed = sum(max(map(cell_len, (columns[n], *(row[n] for row in rows)))) + _GAP for n in fixed)
    if not sys.stdout.isatty() or console.width < needed + _MIN_LAST_COLUMN:
        # A terminal that is too narrow breaks lines itself, and they can still be copied whole.
        console.width = _UNBROKEN
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for n in shown:
        table.add_column(columns[n], no_wrap=n != last, overflow="fold")
    for row in rows:
        # As texts: what looks like markup is none.
        table.add_row(
            *(Text(row[n], STYLES.get(row[n], "dim") if columns[n] == state else "") for n in shown)
        )
    console.print(table)
