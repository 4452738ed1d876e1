"""Many rows in one step of SQLite.

The driver lets go of the interpreter's lock for each row that it binds or fetches, and under load
each time has to wait for it: a thousand rows take seconds. Here the rows of a statement travel as
one JSON text, in or out, and a statement is one step however many there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic_core import from_json, to_json
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Select,
    TableValuedAlias,
    bindparam,
    func,
    literal_column,
    select,
)


def given(name: str) -> TableValuedAlias:
    """Return the rows of the parameter `name`, a text made by `packed`."""
    return func.json_each(bindparam(name)).table_valued("value", name=name)


def field(rows: TableValuedAlias, number: int) -> ColumnElement[Any]:  # Any: text or number
    """Return the field with that number of the rows that are given."""
    return func.json_extract(rows.c.value, literal_column(f"'$[{number}]'"))


def packed(rows: Iterable[Any]) -> str:  # Any: numbers, texts, or sequences of them
    """Return rows as the text that `given` takes."""
    return to_json(list(rows)).decode()


def listed(*columns: Column[Any]) -> Select[Any]:  # Any: of whatever type
    """Return a query whose one row is the list of all rows; `fetch` runs it."""
    return select(func.json_group_array(func.json_array(*columns)))


def fetch(
    connection: Connection, query: Select[Any], **parameters: object
) -> list[list[Any]]:  # Any: numbers and texts
    """Run a query that was made with `listed`; returns its rows, in no order."""
    rows: list[list[Any]] = from_json(connection.execute(query, parameters).scalar_one())
    return rows
