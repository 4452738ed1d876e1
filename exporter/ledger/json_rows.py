"""Many rows in one step of the database.

SQLite's driver lets go of the interpreter's lock for each row that it binds or fetches, and under
load each time has to wait for it: a thousand rows take seconds. PostgreSQL's needs a round trip for
each. Here the rows of a statement travel as one JSON text, in or out, and a statement is one step
however many there are. The engines differ in what their functions are called, and in no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Final

from pydantic_core import from_json, to_json
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Select,
    bindparam,
    cast,
    literal_column,
    select,
    true,
)

# The words of both engines: SQLite's compiler takes this one, too.
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Text

# Any, below: of the type of a column, and what the compiler hands on.


class _JsonFunction(FunctionElement[Any]):
    """A function as each engine writes it, of arguments: `{0}` is the first, `{args}` are all."""

    sqlite: ClassVar[str]
    postgresql: ClassVar[str]
    inherit_cache = True
    type = Text()


class _Each(_JsonFunction):
    """The items of a JSON array, as rows."""

    inherit_cache = True
    sqlite = "json_each({0})"
    postgresql = "json_array_elements(CAST({0} AS JSON))"


class _Item(_JsonFunction):
    """An item as a text."""

    inherit_cache = True
    sqlite = "{0}"
    postgresql = "{0} #>> '{{}}'"


class _Field(_JsonFunction):
    """The field of an item with a number, as a text."""

    inherit_cache = True
    sqlite = "json_extract({0}, '$[{1}]')"
    postgresql = "{0} ->> {1}"


class _Listed(_JsonFunction):
    """All rows, as a JSON array of arrays."""

    inherit_cache = True
    sqlite = "json_group_array(json_array({args}))"
    postgresql = "CAST(coalesce(json_agg(json_build_array({args})), '[]') AS TEXT)"


@compiles(_JsonFunction)
def _compile(element: _JsonFunction, compiler: SQLCompiler, **kw: Any) -> str:
    template: str = getattr(element, compiler.dialect.name)
    args = [compiler.process(clause, **kw) for clause in element.clauses]
    return template.format(*args, args=", ".join(args))


ROWS: Final = _Each(bindparam("rows", type_=Text())).table_valued("value", name="rows")
"""The rows of the parameter `rows`, a text made by `to_json_rows`."""


def field(number: int, like: Column[Any]) -> ColumnElement[Any]:
    """Return the field with that number of `ROWS`, as what a column holds."""
    return cast(_Field(ROWS.c.value, literal_column(str(number))), like.type)


def item(like: Column[Any]) -> ColumnElement[Any]:
    """Return `ROWS`, where each is a number or a text, as what a column holds."""
    return cast(_Item(ROWS.c.value), like.type)


def is_given(column: Column[Any]) -> ColumnElement[bool]:
    """Say that a column holds one of `ROWS`, which are numbers or texts."""
    return column.in_(select(item(column)))


def insert_rows(*columns: Column[Any], update: Column[Any] | None = None) -> Insert:
    """Return what inserts `ROWS`.

    Args:
        columns: of one table, whose values are the fields of a row; or one, for rows of values.
        update: changed in rows that are there already, which stay as they are otherwise.
    """
    fields = [field(number, column) for number, column in enumerate(columns)]
    if len(columns) == 1:
        fields = [item(*columns)]
    # Without a condition, SQLite takes what follows for a part of the join.
    rows = select(*fields).select_from(ROWS).where(true())
    names = [column.name for column in columns]
    adding = insert(columns[0].table).from_select(names, rows, include_defaults=False)
    if update is None:
        return adding.on_conflict_do_nothing()
    return adding.on_conflict_do_update(
        index_elements=update.table.primary_key, set_={update.name: adding.excluded[update.name]}
    )


def to_json_rows(rows: Iterable[Any]) -> str:
    """Return rows as the text of `ROWS`: numbers, texts, or sequences of them."""
    return to_json(list(rows)).decode()


def select_json(*columns: ColumnElement[Any]) -> Select[Any]:
    """Return a query whose one row is the list of all rows; `fetch_json` runs it."""
    return select(_Listed(*columns))


def fetch_json(connection: Connection, query: Select[Any], **parameters: object) -> list[list[Any]]:
    """Run a query that was made with `select_json`; return its rows, in no order."""
    rows: list[list[Any]] = from_json(connection.execute(query, parameters).scalar_one())
    return rows
