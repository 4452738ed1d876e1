"""Tables of calls, CSV or the rows of a query: what their columns mean."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

from exporter.config.document import YamlMapping

COLUMNS: Final = ("reference_id", "account")
"""Those that every table may have; the others are labels."""


def header_problem(header: Sequence[str], labels: Sequence[str]) -> str | None:
    """Return what is wrong with the names of the columns; None if they will do.

    Args:
        header: the names.
        labels: the names in `watch.labels`.
    """
    if "reference_id" not in header or len(set(header)) < len(header):
        return "expected a column `reference_id`, and each name once"
    if not {*header} <= {*COLUMNS, *labels}:
        return "expected no columns but `reference_id`, `account` and names in `watch.labels`"
    return None


def as_item(header: Sequence[str], row: Sequence[str], line: int) -> YamlMapping:
    """Return a row as the mapping that it would be in YAML; empty fields are left out.

    Args:
        header: the names of the columns.
        row: the fields.
        line: where the row stands.
    """
    item, labels = YamlMapping(), YamlMapping()
    # A row that is too long has a field without a name, which is then told as an unknown one.
    names = (*header, *("?" for _ in row[len(header) :]))
    for name, value in zip(names, row, strict=False):
        if value.strip():
            (item if name in COLUMNS else labels)[name] = value.strip()
    if labels:
        labels.lines = array("I", [line] * len(labels))
        item["labels"] = labels
    item.lines = array("I", [line] * len(item))
    return item
