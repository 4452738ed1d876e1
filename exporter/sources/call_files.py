"""One file of calls, from its text to calls and problems: YAML, JSON, a list of ids, or CSV.

Files are read as a stream: what is held does not grow with them.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Final, TextIO

from exporter.config.calls import CallConfig, CallReader
from exporter.config.document import DocumentError, Value, parse_items, told_to
from exporter.config.files import open_text
from exporter.config.problems import Problems
from exporter.sources.json_items import json_items
from exporter.sources.tables import as_item, header_problem

MAX_FILE: Final = 64 << 20
"""Bytes; a million ids are 37 MB."""

MAX_LINE: Final = 1 << 20
"""Characters of a line, and of a row of CSV, which may have several lines."""

_DELIMITERS: Final = ",;\t|"
# What Excel obeys, and some programs write for it.
_SEPARATOR_LINE: Final = re.compile('["\']?sep=([^"\r\n])["\']?[,;\t]*\r?\n?', re.IGNORECASE)

Items = Iterator[tuple[int, Value]]
"""Items as they would be in YAML, each with its line."""


def read_calls(
    path: str,
    accounts: Sequence[str],
    labels: Sequence[str],
    problems: Problems,
    *,
    whole: bool = True,
    account: str | None = None,
) -> Iterator[CallConfig]:
    """Yield the calls of a file; its name's ending tells what it is. Blocking.

    Args:
        path: the file.
        accounts: the names of the accounts that there are.
        labels: the names in `watch.labels`.
        problems: takes what is wrong with calls; the others are yielded.
        whole: False for a file that is being written: of a list of ids or of CSV, what follows the
            last line break is left for the next time.
        account: the account of calls that name none; by default the only one that there is.

    Raises:
        ConfigError: it cannot be read, or not any further; with all problems.
    """
    reader = CallReader(accounts, labels, problems, (), repeats=True, account=account)
    newline = "" if path.endswith(".csv") else "\n"
    with told_to(problems), open_text(Path(path), MAX_FILE, newline) as file:
        yield from reader.read(_items(path, file, labels, problems, whole=whole))


def _items(
    path: str, file: TextIO, labels: Sequence[str], problems: Problems, *, whole: bool
) -> Items:
    if path.endswith(".txt"):
        return _ids(_lines(file, whole=whole))
    if path.endswith(".csv"):
        return _rows(_lines(file, whole=whole), labels)
    if path.endswith(".json"):
        return json_items(file, problems)
    # No variables: what other programs write is not to read the exporter's environment.
    return parse_items(file, problems)


def _lines(file: TextIO, *, whole: bool) -> Iterator[tuple[int, str]]:
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise _too_long(number)
        if whole or line.endswith("\n"):
            yield number, line


def _ids(lines: Iterator[tuple[int, str]]) -> Items:
    for number, line in lines:
        if content := line.partition("#")[0].strip():
            yield number, content


def _table(lines: Iterator[tuple[int, str]], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of CSV, each with the line where it ends."""
    size = number = 0  # of a row

    def measured() -> Iterator[str]:
        nonlocal size, number
        for number, line in lines:
            size += len(line)
            if size > MAX_LINE:
                raise _too_long(number)
            yield line

    reader = csv.reader(measured(), strict=True, delimiter=delimiter)
    try:
        for row in reader:
            size = 0
            yield number, row
    except csv.Error as error:
        raise DocumentError(number, [], f"is not valid CSV: {error}") from None


def _rows(lines: Iterator[tuple[int, str]], labels: Sequence[str]) -> Items:
    first = next(lines, (1, ""))
    if separator := _SEPARATOR_LINE.fullmatch(first[1]):
        delimiter, first = separator[1], next(lines, (2, ""))
    else:
        # Not `csv.Sniffer`, which guesses: the name of the one column that has to be there tells.
        found = (one for one in _DELIMITERS if "reference_id" in _names(first[1].split(one)))
        delimiter = next(found, ",")
    rows = _table(chain([first], lines), delimiter)
    line, names = next(rows, (1, []))
    header = _names(names)
    while header and not header[-1]:
        header.pop()
    if not header and not any(field.strip() for _, row in rows for field in row):
        return
    if problem := header_problem(header, labels):
        separated = "; columns are separated by `,`, `;`, tabs, or as a first line `sep=` says"
        known = "reference_id" in header
        raise DocumentError(line, [], problem if known else problem + separated)
    for line, row in rows:
        if any(field.strip() for field in row):
            yield line, as_item(header, row, line)


def _names(fields: Sequence[str]) -> list[str]:
    return [field.strip().strip('"') for field in fields]


def _too_long(line: int) -> DocumentError:
    return DocumentError(line, [], f"is longer than {MAX_LINE} characters")
