"""Rows as text: CSV and JSON for programs, a table for people."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

import click
from pydantic_core import to_json, to_jsonable_python
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

STYLES: Final = {"success": "green", "failure": "red", "finished": "", "not_found": "yellow"}
"""How the words of a table's column of states look; others are dim."""

# Wider than any row: what is not read on a terminal is not to be broken into lines.
_UNBROKEN: Final = 100_000

_GAP: Final = 2
_MIN_LAST_COLUMN: Final = 12
"""Columns of a terminal that the last column of a table needs, to be read."""

# With `'` in front it gets one more, so that the text can be restored from the field.
_FORMULA: Final = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")

output_option = click.option(
    "--output",
    type=click.Choice(["table", "json", "csv"]),
    help="A table for people, lines of JSON or CSV for machines.  [default: table]",
)


def header(output: str | None, columns: Iterable[str]) -> str:
    """Return what comes before the lines of `csv` or `json`."""
    return _csv(columns) if output == "csv" else ""


def line(
    output: str | None, row: Any
) -> str:  # Any: a dataclass or a model, its fields are the columns
    """Return a row as a line of `csv` or `json`.

    In CSV, what there is not is empty, and a mapping is JSON. A spreadsheet would run a text that
    begins like a formula: it gets a `'` in front, as OWASP advises (CSV injection).
    """
    if output == "csv":
        return _csv(map(_csv_value, to_jsonable_python(row).values()))
    return to_json(row).decode() + "\n"


def csv_text(field: str) -> str:
    """Return the text that `line` has written as this field."""
    return field[1:] if field.startswith("'") and _FORMULA.match(field) else field


def _csv_value(value: object) -> object:
    if isinstance(value, dict):
        return to_json(value).decode()
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _csv(values: Iterable[object]) -> str:
    text = io.StringIO()
    # Python quotes the characters of what ends a line, and no other that does.
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return text.getvalue().removesuffix("\r\n") + "\n"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; columns that are empty in all rows are left out.

    Args:
        columns: their names. The words of `state` are coloured; the last column alone is broken
            into lines.
        rows: a text for each column.
    """
    shown = [n for n, name in enumerate(columns) if name == "state" or any(row[n] for row in rows)]
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
            *(
                Text(row[n], STYLES.get(row[n], "dim") if columns[n] == "state" else "")
                for n in shown
            )
        )
    console.print(table)
