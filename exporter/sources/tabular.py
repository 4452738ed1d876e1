"""Files of calls, and rows of queries, as the items that a configuration would list.

Files are read as a stream: what is held does not grow with them. A name's ending tells what a file
is: a list of ids (`.txt`), a table (`.csv`), JSON, or YAML.
"""

from __future__ import annotations

import csv
import json
import re
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Final, NoReturn, TextIO

from exporter.config.document import (
    MAX_ITEM_NODES,
    DocumentError,
    Problems,
    Value,
    YamlMapping,
    collect_errors,
    parse_items,
)
from exporter.config.files import open_text
from exporter.config.watch import CallConfig, CallReader

MAX_FILE: Final = 64 << 20
"""Bytes; a million ids are 37 MB."""

MAX_LINE: Final = 1 << 20
"""Characters of a line, of a row of CSV, which may have several lines, and of an item of JSON."""

COLUMNS: Final = ("reference_id", "account")
"""Those that every table may have; the others are labels."""

_DELIMITERS: Final = ",;\t|"
# What Excel obeys, and some programs write for it.
_SEPARATOR_LINE: Final = re.compile('["\']?sep=([^"\r\n])["\']?[,;\t]*\r?\n?', re.IGNORECASE)
_CHUNK: Final = 1 << 16
# Characters of the longest token of JSON that may be cut off without being a string: an escape.
_ESCAPE: Final = 12
_BLANK: Final = re.compile(r"[ \t\r\n]*")

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
    """Yield the calls of a file. Blocking.

    Args:
        path: the file.
        accounts: the names of the accounts.
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
        yield from reader.read(items)


def header_problem(header: Sequence[str], labels: Sequence[str]) -> str | None:
    """Return what is wrong with the names of columns, if anything.

    Args:
        header: the names.
        labels: the names in `watch.labels`.
    """
    if "reference_id" not in header or len(set(header)) < len(header):
        return "expected a column `reference_id`, and each name once"
    if not {*header} <= {*COLUMNS, *labels}:
        return "expected no columns but `reference_id`, `account` and names in `watch.labels`"
    return None


def row_to_item(header: Sequence[str], row: Sequence[str], line: int) -> YamlMapping:
    """Return a row as the mapping that it would be in YAML; empty fields are left out."""
    item, labels = YamlMapping(), YamlMapping()
    # A row that is too long has a field without a name, which is reported as an unknown label.
    names = (*header, *("?" for _ in row[len(header) :]))
    for name, value in zip(names, row, strict=False):
        if value.strip():
            (item if name in COLUMNS else labels)[name] = value.strip()
    if labels:
        labels.lines = array("I", [line] * len(labels))
        item["labels"] = labels
    item.lines = array("I", [line] * len(item))
    return item


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
        # Not `csv.Sniffer`, which guesses: the one column that has to be there tells.
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
            problem += "; columns are separated by `,`, `;`, tabs, or as a first line `sep=` says"
        raise DocumentError(line, [], problem)
    for line, row in rows:
        if any(field.strip() for field in row):
            yield line, row_to_item(header, row, line)


def _split_rows(
    lines: Iterator[tuple[int, str]], delimiter: str
) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of CSV, each with the line where it ends."""
    size = number = 0  # of a row

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
        raise DocumentError(number, [], f"is not valid CSV: {error}") from None


def _names(fields: Sequence[str]) -> list[str]:
    return [field.strip().strip('"') for field in fields]


def _too_long(line: int) -> DocumentError:
    return DocumentError(line, [], f"is longer than {MAX_LINE} characters")


class _JsonReader:
    """Reads the list that a file of JSON is, an item at a time; an empty file has none.

    Args:
        file: JSON.
        problems: takes duplicate keys, whose first value counts.
    """

    def __init__(self, file: TextIO, problems: Problems) -> None:
        self._file = file
        self._problems = problems
        self._line = 1
        self._index = 0
        self._text = ""
        self._at = 0
        self._duplicates: list[str] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._mapping,
            # Of any length: Python refuses to read whole numbers of thousands of digits.
            parse_int=float,
            parse_constant=_refuse_constant,
        )

    def items(self) -> Items:
        """Yield the items, each with its line.

        Raises:
            DocumentError: the rest is not JSON, not a list, or an item is too long.
        """
        if not (first := self._next_character()):
            return
        if first != "[":
            raise DocumentError(self._line, [], "expected a list of calls, as in `watch.calls`")
        self._at += 1
        end = self._next_character()
        while end != "]":
            self._next_character()
            line = self._line
            value = self._value()
            for name in self._duplicates:
                self._problems.add(line, (self._index, name), "duplicate key")
            yield line, value
            self._index += 1
            if (end := self._next_character()) not in ("]", ","):
                self._fail("expected `,` or `]`")
            self._at += end == ","
        self._at += 1
        if self._next_character():
            self._fail("expected nothing after the list")

    def _next_character(self) -> str:
        """Return what comes after blanks, without passing it; empty at the end of the file."""
        while True:
            end = _BLANK.match(self._text, self._at).end()  # type: ignore[union-attr]
            self._pass(end)
            if end < len(self._text) or not self._fill():
                return self._text[end : end + 1]

    def _value(self) -> Value:
        while True:
            self._duplicates = []
            value: Value = None
            error: json.JSONDecodeError | None = None
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except RecursionError:
                self._fail("is nested too deeply")
            except json.JSONDecodeError as caught:
                error, end = caught, len(self._text)
                if caught.pos < end - _ESCAPE and not caught.msg.startswith("Unterminated"):
                    self._refuse(caught)
            except ValueError as caught:
                self._fail(str(caught))
            if end < len(self._text):
                break
            # It may go on.
            if len(self._text) - self._at > MAX_LINE:
                self._fail(f"is longer than {MAX_LINE} characters")
            if not self._fill():
                if error is None:
                    break
                self._refuse(error)
        text = self._text[self._at : end]
        _set_lines(value, self._line, text if "\n" in text else "")
        self._pass(end)
        return value

    def _refuse(self, error: json.JSONDecodeError) -> NoReturn:
        self._pass(error.pos)
        self._fail(f"is not valid JSON: {error.msg.strip()}")  # which quotes nothing of the file

    def _fail(self, message: str) -> NoReturn:
        raise DocumentError(self._line, [self._index], message)

    def _mapping(self, pairs: Sequence[tuple[str, Value]]) -> YamlMapping:
        if len(pairs) > MAX_ITEM_NODES:
            raise ValueError(f"holds more than {MAX_ITEM_NODES} keys")
        mapping = YamlMapping()
        for key, value in pairs:
            if key in mapping:
                self._duplicates.append(key)
            mapping.setdefault(key, value)
        return mapping

    def _fill(self) -> bool:
        """Read on; return whether there was anything."""
        if more := self._file.read(max(_CHUNK, len(self._text) - self._at)):
            self._text = self._text[self._at :] + more
            self._at = 0
        return bool(more)

    def _pass(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        self._at = end


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"is not valid JSON: {name} is no value of it")


def _set_lines(value: Value, line: int, text: str, at: int = 0) -> int:
    """Give mappings the lines of their keys.

    Args:
        value: what was read.
        line: where `text` begins.
        text: what it was read from.
        at: where in it the value is.

    Returns:
        Where the last key that was found ends.
    """
    if isinstance(value, YamlMapping):
        lines = []
        for key, inner in value.items():
            if found := re.compile(f"{re.escape(json.dumps(key))}[ \\t\\r\\n]*:").search(text, at):
                at = found.start()
            lines.append(line + text.count("\n", 0, at))
            at = _set_lines(inner, line, text, found.end() if found else at)
        value.lines = array("I", lines)
    return at
