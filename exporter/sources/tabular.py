"""Parsers of files of calls and of query results; both yield items as in `watch.calls`.

Files are read as a stream in bounded memory. The suffix tells the format: a list of ids (`.txt`), a
table (`.csv`), JSON, or YAML.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Final, NoReturn, TextIO

from exporter.config.document import (
    MAX_ITEM_NODES,
    Problems,
    Value,
    YamlMapping,
    collect_errors,
    parse_items,
)
from exporter.config.files import FileProblemError, open_text
from exporter.config.validation import LoadContext
from exporter.config.watch import CallConfig, validate_calls

MAX_FILE: Final = 64 << 20
"""Bytes; a million ids are 37 MB."""

MAX_LINE: Final = 1 << 20
"""Characters of a line, and of a CSV row, which may span lines."""

MAX_ITEM: Final = 1 << 16
"""Characters of a JSON item."""

COLUMNS: Final = ("reference_id", "account", "kind")
"""The columns that are not labels."""

_DELIMITERS: Final = ",;\t|"
# A first line for Excel that sets the delimiter; some programs write it.
_SEPARATOR_LINE: Final = re.compile('["\']?sep=([^"\r\n])["\']?[,;\t]*\r?\n?', re.IGNORECASE)
_BLANKS: Final = re.compile(r"[ \t\r\n]+")

Items = Iterator[tuple[int, Value]]
"""Line numbers and items as they would be in YAML."""


def read_calls(
    path: str,
    accounts: Sequence[str],
    labels: Sequence[str],
    problems: Problems,
    *,
    whole: bool = True,
    account: str | None = None,
) -> Iterator[CallConfig]:
    """Yield the valid calls of a file. Blocking.

    Raises a `ConfigError` with all problems if the rest of the file cannot be read.

    Unless `whole`, the file is being written: in a list of ids or CSV, an incomplete last line is
    ignored. `account` is that of calls without one; by default the only configured account.
    """
    context = LoadContext(Path(), problems, accounts=accounts, labels=labels, account=account)
    newline = "" if path.endswith(".csv") else "\n"
    with collect_errors(problems), open_text(Path(path), MAX_FILE, newline) as file:
        if path.endswith(".txt"):
            items = _read_ids(_read_lines(file, whole=whole))
        elif path.endswith(".csv"):
            items = _read_csv(_read_lines(file, whole=whole), labels)
        elif path.endswith(".json"):
            items = _JsonReader(file, problems).items()
        else:
            # No variables: files of other programs must not read the exporter's environment.
            items = parse_items(file, problems)
        yield from validate_calls(items, context)


def header_problem(header: Sequence[str], labels: Sequence[str]) -> str | None:
    """Return what is wrong with the names of columns, or None; `labels` are `watch.labels`."""
    if "reference_id" not in header or len(set(header)) < len(header):
        return "expected a column `reference_id`, and no duplicate columns"
    if not {*header} <= {*COLUMNS, *labels}:
        names = "`reference_id`, `account`, `kind` and names in `watch.labels`"
        return f"expected only the columns {names}"
    return None


def row_to_item(header: Sequence[str], row: Sequence[str]) -> YamlMapping:
    """Return a row as the mapping that it would be in YAML, without empty fields."""
    item, labels = dict[str, Value](), dict[str, Value]()
    # An extra field has no name, which is reported as an unknown label.
    names = (*header, *("?" for _ in row[len(header) :]))
    for name, value in zip(names, row, strict=False):
        if value.strip():
            (item if name in COLUMNS else labels)[name] = value.strip()
    if labels:
        item["labels"] = YamlMapping(labels)
    return YamlMapping(item)


def _read_lines(file: TextIO, *, whole: bool) -> Iterator[tuple[int, str]]:
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise _too_long(number)
        if whole or line.endswith("\n"):
            yield number, line


def _read_ids(lines: Iterator[tuple[int, str]]) -> Items:
    for number, line in lines:
        if content := line.partition("#")[0].strip():
            yield number, content


def _read_csv(lines: Iterator[tuple[int, str]], labels: Sequence[str]) -> Items:
    first = next(lines, (1, ""))
    if separator := _SEPARATOR_LINE.fullmatch(first[1]):
        delimiter, first = separator[1], next(lines, (2, ""))
    else:
        # The delimiter that splits off the required column; `csv.Sniffer` only guesses.
        fitting = (one for one in _DELIMITERS if "reference_id" in _names(first[1].split(one)))
        delimiter = next(fitting, ",")
    rows = _split_rows(chain([first], lines), delimiter)
    line, names = next(rows, (1, []))
    header = _names(names)
    while header and not header[-1]:
        header.pop()
    if not header and not any(field.strip() for _, row in rows for field in row):
        return
    if problem := header_problem(header, labels):
        if "reference_id" not in header:
            problem += "; the delimiter is `,`, `;`, a tab, or the one in a first line `sep=`"
        raise FileProblemError(problem, line)
    for line, row in rows:
        if any(field.strip() for field in row):
            yield line, row_to_item(header, row)


def _split_rows(
    lines: Iterator[tuple[int, str]], delimiter: str
) -> Iterator[tuple[int, list[str]]]:
    """Yield CSV rows with the numbers of their last lines."""
    size = number = 0  # size of the current row; line number

    def measured() -> Iterator[str]:
        nonlocal size, number
        for number, line in lines:
            size += len(line)
            if size > MAX_LINE:
                raise _too_long(number)
            yield line

    try:
        for row in csv.reader(measured(), strict=True, delimiter=delimiter):
            size = 0
            yield number, row
    except csv.Error as error:
        raise FileProblemError(f"is not valid CSV: {error}", number) from None


def _names(fields: Sequence[str]) -> list[str]:
    return [field.strip().strip('"') for field in fields]


def _too_long(line: int) -> FileProblemError:
    return FileProblemError(f"is longer than {MAX_LINE} characters", line)


class _JsonReader:
    """Incremental parser of a JSON list; an empty file is an empty list.

    Buffers more text than the longest item, so that each item is parsed at once. Of duplicate keys,
    which are problems, the first value counts.
    """

    def __init__(self, file: TextIO, problems: Problems) -> None:
        self._file = file
        self._problems = problems
        self._text, self._at, self._ended = "", 0, False
        self._line, self._index = 1, 0
        # As floats, because Python refuses to parse integers with thousands of digits.
        self._decoder = json.JSONDecoder(object_pairs_hook=self._mapping, parse_int=float)

    def items(self) -> Items:
        """Yield the items with their line numbers, or raise `FileProblemError`."""
        if not (first := self._peek()):
            return
        if first != "[":
            raise FileProblemError("expected a list of calls, as in `watch.calls`", self._line)
        self._at += 1
        after = self._peek()
        while after != "]":
            self._peek()
            value, end = self._value()
            yield self._line, value
            self._move(end)
            self._index += 1
            if (after := self._peek()) not in ("]", ","):
                self._fail("expected `,` or `]`")
            self._at += after == ","
        self._at += 1
        if self._peek():
            self._fail("expected nothing after the list")

    def _value(self) -> tuple[Value, int]:
        """Return the next item and where it ends."""
        value: Value = None
        try:
            value, end = self._decoder.raw_decode(self._text, self._at)
        except RecursionError:
            self._fail("is nested too deeply")
        except json.JSONDecodeError as error:
            end = len(self._text) if error.msg.startswith("Unterminated") else error.pos
            if end - self._at <= MAX_ITEM:
                self._move(error.pos)
                self._fail(f"is not valid JSON: {error.msg.strip()}")  # quotes no content
        except ValueError as error:
            self._fail(str(error))
        if end - self._at > MAX_ITEM:
            self._fail(f"is longer than {MAX_ITEM} characters")
        return value, end

    def _peek(self) -> str:
        """Skip blanks and return the next character; empty at the end of the file."""
        while True:
            if not self._ended and len(self._text) - self._at <= MAX_ITEM:
                more = self._file.read(2 * MAX_ITEM)
                self._text, self._at, self._ended = self._text[self._at :] + more, 0, not more
            if blanks := _BLANKS.match(self._text, self._at):
                self._move(blanks.end())
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]

    def _move(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        self._at = end

    def _fail(self, message: str) -> NoReturn:
        raise FileProblemError(message, self._line, [self._index])

    def _mapping(self, pairs: Sequence[tuple[str, Value]]) -> YamlMapping:
        if len(pairs) > MAX_ITEM_NODES:
            raise ValueError(f"has more than {MAX_ITEM_NODES} keys")
        mapping = dict[str, Value]()
        for key, value in pairs:
            if key in mapping:
                self._problems.add(self._line, (self._index, key), "duplicate key")
            mapping.setdefault(key, value)
        return YamlMapping(mapping)
