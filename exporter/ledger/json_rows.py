"""Many rows in one step of the database.

SQLite's driver lets go of the interpreter's lock for each row that it binds or fetches, and under
load each time has to wait for it: a thousand rows take seconds. PostgreSQL's needs a round trip for
each. Here the rows of a statement travel as one JSON text, in or out, and a statement is one step
however many there are. The engines differ in what their functions are called, and in no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from pydantic_core import from_json, to_json
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Insert,
    Select,
    TableValuedAlias,
    bindparam,
    literal_column,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Text, TypeEngine

_WHOLE: Final = -1


class _Each(FunctionElement[Any]):  # Any: rows of whatever
    """The items of a JSON array, as rows."""

    name = "json_each"
    inherit_cache = True


class _Field(FunctionElement[Any]):  # Any: of its type
    """A field of an item, or the item itself, as a value of a type."""

    name = "json_field"
    inherit_cache = True

    def __init__(self, item: ColumnElement[Any], number: int, kind: TypeEngine[Any]) -> None:
        self.type = kind
        super().__init__(item, literal_column(str(number)))


class _Listed(FunctionElement[str]):
    """All rows, as a JSON array of arrays."""

    name = "json_listed"
    inherit_cache = True
    type = Text()


class OrIgnore(Insert):
    """An insert that leaves out what is there already; the same words on every engine.

    Without RETURNING: it has to be `inline`, as one from a query is by itself.
    """

    inherit_cache = True


# Any, below: what else the compiler hands on.


@compiles(OrIgnore)
def _or_ignore(element: OrIgnore, compiler: SQLCompiler, **kw: Any) -> str:
    found = compiler.visit_insert(element, **kw)  # type: ignore[no-untyped-call]
    return f"{found} ON CONFLICT DO NOTHING"


@compiles(_Each, "sqlite")
def _each_sqlite(element: _Each, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **kw)})"


@compiles(_Each, "postgresql")
def _each_postgresql(element: _Each, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_array_elements(CAST({compiler.process(element.clauses, **kw)} AS JSON))"


def _parts(element: _Field, compiler: SQLCompiler, **kw: Any) -> tuple[str, int]:
    item, number = (compiler.process(clause, **kw) for clause in element.clauses)
    return item, int(number)


@compiles(_Field, "sqlite")
def _field_sqlite(element: _Field, compiler: SQLCompiler, **kw: Any) -> str:
    item, number = _parts(element, compiler, **kw)
    return item if number == _WHOLE else f"json_extract({item}, '$[{number}]')"


@compiles(_Field, "postgresql")
def _field_postgresql(element: _Field, compiler: SQLCompiler, **kw: Any) -> str:
    item, number = _parts(element, compiler, **kw)
    text = f"{item} #>> '{{}}'" if number == _WHOLE else f"{item} ->> {number}"
    kind = compiler.dialect.type_compiler_instance.process(element.type)
    return f"CAST({text} AS {kind})"


@compiles(_Listed, "sqlite")
def _listed_sqlite(element: _Listed, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_group_array(json_array({compiler.process(element.clauses, **kw)}))"


@compiles(_Listed, "postgresql")
def _listed_postgresql(element: _Listed, compiler: SQLCompiler, **kw: Any) -> str:
    row = f"json_build_array({compiler.process(element.clauses, **kw)})"
    return f"CAST(coalesce(json_agg({row}), '[]') AS TEXT)"


def json_param(name: str) -> TableValuedAlias:
    """Return the rows of the parameter `name`, a text made by `to_json_rows`."""
    return _Each(bindparam(name, type_=Text())).table_valued("value", name=name)


def field(
    rows: TableValuedAlias, number: int, like: Column[Any]
) -> ColumnElement[Any]:  # Any: of that column's type
    """Return the field with that number of the rows that are given, as what a column holds."""
    return _Field(rows.c.value, number, like.type)


def item(rows: TableValuedAlias, like: Column[Any]) -> ColumnElement[Any]:  # Any: as above
    """Return the rows that are given, where each is a number or a text, as what a column holds."""
    return _Field(rows.c.value, _WHOLE, like.type)


def to_json_rows(rows: Iterable[Any]) -> str:  # Any: numbers, texts, or sequences of them
    """Return rows as the text that `json_param` takes."""
    return to_json(list(rows)).decode()


def select_json(*columns: ColumnElement[Any]) -> Select[Any]:  # Any: of whatever type
    """Return a query whose one row is the list of all rows; `fetch_json` runs it."""
    return select(_Listed(*columns))


def fetch_json(
    connection: Connection, query: Select[Any], **parameters: object
) -> list[list[Any]]:  # Any: numbers and texts
    """Run a query that was made with `select_json`; return its rows, in no order."""
    rows: list[list[Any]] = from_json(connection.execute(query, parameters).scalar_one())
    return rows
