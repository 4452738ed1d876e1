"""Pass many rows to or from one statement as a JSON text.

SQLite's driver releases the GIL for each row and waits to get it back: under load, a thousand rows
take seconds. PostgreSQL's driver needs a round trip for each row. As JSON, any number of rows takes
one step. The engines differ only in the names of their JSON functions.
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
    literal_column,
    select,
    true,
)

# SQLite's compiler accepts this INSERT, too.
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Text

# Any, below: the types of columns, and the compiler's options.


class _JsonFunction(FunctionElement[Any]):
    """A JSON function, with a template per engine: `{0}` is the first argument, `{args}` all."""

    sqlite: ClassVar[str]
    postgresql: ClassVar[str]
    inherit_cache = True

    def __init__(self, *arguments: ColumnElement[Any], like: Column[Any] | None = None) -> None:
        super().__init__(*arguments)
        self.type = Text() if like is None else like.type


class _Each(_JsonFunction):
    """The items of a JSON array, as rows."""

    inherit_cache = True
    sqlite = "json_each({0})"
    postgresql = "json_array_elements(CAST({0} AS JSON))"


class _Item(_JsonFunction):
    """An item of the array."""

    inherit_cache = True
    sqlite = "{0}"
    postgresql = "CAST({0} #>> '{{}}' AS {type})"


class _Field(_JsonFunction):
    """The field of an item, by index."""

    inherit_cache = True
    sqlite = "json_extract({0}, '$[{1}]')"
    postgresql = "CAST({0} ->> {1} AS {type})"


class _Listed(_JsonFunction):
    """All rows, as a JSON array of arrays."""

    inherit_cache = True
    sqlite = "json_group_array(json_array({args}))"
    postgresql = "CAST(coalesce(json_agg(json_build_array({args})), '[]') AS TEXT)"


@compiles(_JsonFunction)
def _compile(element: _JsonFunction, compiler: SQLCompiler, **kw: Any) -> str:
    template: str = getattr(element, compiler.dialect.name)
    args = [compiler.process(clause, **kw) for clause in element.clauses]
    types = compiler.dialect.type_compiler_instance
    kind = types.process(element.type) if "{type}" in template else ""
    return template.format(*args, args=", ".join(args), type=kind)


ROWS: Final = _Each(bindparam("rows", type_=Text())).table_valued("value", name="rows")
"""The rows of the parameter `rows`, a text made by `to_json_rows`."""


def field(number: int, like: Column[Any]) -> ColumnElement[Any]:
    """Return a field of `ROWS`, by index, as the type of a column."""
    return _Field(ROWS.c.value, literal_column(str(number)), like=like)


def item(like: Column[Any]) -> ColumnElement[Any]:
    """Return the value of a row of `ROWS`, for rows of single values, as the type of a column."""
    return _Item(ROWS.c.value, like=like)


def is_given(column: Column[Any]) -> ColumnElement[bool]:
    """Return the condition that a column is one of `ROWS`, which are single values."""
    return column.in_(select(item(column)))


def insert_rows(
    *columns: Column[Any], update: Column[Any] | None = None, **constants: ColumnElement[Any]
) -> Insert:
    """Return a statement that inserts `ROWS`.

    `columns` are those of the fields of a row; one column for rows of single values. `constants`
    are the values of further columns. Existing rows do not change, except in the column `update`.
    """
    fields = [field(number, column) for number, column in enumerate(columns)]
    if len(columns) == 1:
        fields = [item(*columns)]
    # Without a condition, SQLite would parse ON CONFLICT as a part of the join.
    rows = select(*fields, *constants.values()).select_from(ROWS).where(true())
    names = [*(column.name for column in columns), *constants]
    adding = insert(columns[0].table).from_select(names, rows, include_defaults=False)
    if update is None:
        return adding.on_conflict_do_nothing()
    return adding.on_conflict_do_update(
        index_elements=update.table.primary_key, set_={update.name: adding.excluded[update.name]}
    )


def to_json_rows(rows: Iterable[Any]) -> str:
    """Return the JSON text for `ROWS`: numbers, strings, or sequences of them."""
    return to_json(list(rows)).decode()


def select_json(*columns: ColumnElement[Any]) -> Select[Any]:
    """Return a query that returns all rows as one JSON text; run it with `fetch_json`."""
    return select(_Listed(*columns))


def fetch_json(connection: Connection, query: Select[Any], **parameters: object) -> list[list[Any]]:
    """Run a query of `select_json`; return its rows, in no particular order."""
    rows: list[list[Any]] = from_json(connection.execute(query, parameters).scalar_one())
    return rows
