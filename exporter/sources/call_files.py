"""One file of calls, from its text to calls and problems: YAML, JSON, a list of ids, or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from exporter.config.calls import CallConfig, CallReader
from exporter.config.document import (
    DocumentError,
    Value,
    YamlSequence,
    parse_document,
    told_to,
)
from exporter.config.files import read_text
from exporter.config.problems import Problems
from exporter.errors import Problem
from exporter.sources.tables import as_item, as_sequence, header_problem

MAX_FILE: Final = 64 << 20
"""Bytes; a million ids are 37 MB."""


class FileOfCalls(NamedTuple):
    """What a file says.

    Attributes:
        calls: those that are as they should be.
        problems: what is wrong with the others.
    """

    calls: tuple[CallConfig, ...]
    problems: tuple[Problem, ...]


def read_calls(
    path: str,
    accounts: Sequence[str],
    labels: Sequence[str],
    *,
    whole: bool = True,
    account: str | None = None,
) -> FileOfCalls:
    """Read a file of calls; its name's ending tells what it is.

    Args:
        path: the file.
        accounts: the names of the accounts that there are.
        labels: the names in `watch.labels`.
        whole: False for a file that is being written: of a list of ids or of CSV, what follows the
            last line break is left for the next time.
        account: the account of calls that name none; by default the only one that there is.

    Raises:
        ConfigError: nothing of it can be read.
    """
    problems = Problems(path)
    with told_to(problems):
        text = read_text(Path(path), MAX_FILE)
        items = _items(path, text, labels, problems, whole=whole)
    reader = CallReader(accounts, labels, problems, (), repeats=True, account=account)
    calls = reader.read(items)
    return FileOfCalls(calls, problems.told())


def _items(
    path: str, text: str, labels: Sequence[str], problems: Problems, *, whole: bool
) -> YamlSequence:
    if path.endswith((".txt", ".csv")):
        if not whole:
            text = text[: text.rfind("\n") + 1]
        return _lines(text) if path.endswith(".txt") else _table(text, labels)
    # No variables: what other programs write is not to read the exporter's environment.
    document = parse_document(text, None, problems)
    if document is None:
        return as_sequence([], [])
    if not isinstance(document, YamlSequence):
        raise DocumentError(1, [], "expected a list of calls, as in `watch.calls`")
    return document


def _lines(text: str) -> YamlSequence:
    found = [
        (content, number)
        for number, line in enumerate(text.split("\n"), 1)
        if (content := line.partition("#")[0].strip())
    ]
    return as_sequence([content for content, _ in found], [number for _, number in found])


def _table(text: str, labels: Sequence[str]) -> YamlSequence:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    items: list[Value] = []
    lines: list[int] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        if not text.strip():
            return as_sequence([], [])
        if problem := header_problem(header, labels):
            raise DocumentError(1, [], problem)
        for row in reader:
            if any(field.strip() for field in row):
                items.append(as_item(header, row, reader.line_num))
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DocumentError(reader.line_num, [], f"is not valid CSV: {error}") from None
    return as_sequence(items, lines)
