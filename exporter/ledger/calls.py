"""Statements that read and prune calls, and those about sources and the cursors of queries."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final, Generic, NamedTuple, TypeVar

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Float,
    Row,
    Select,
    bindparam,
    case,
    delete,
    exists,
    func,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert

from exporter.ids import reference_key
from exporter.ledger.engine import READ_TIMEOUT, Database
from exporter.ledger.json_rows import fetch_json, is_given, select_json, to_json_rows
from exporter.ledger.labels import COUNTED_AS, FOLDED
from exporter.ledger.schema import (
    accounts,
    call_sources,
    calls,
    cursors,
    folded_labels,
    label_sets,
)
from exporter.ledger.types import (
    BATCH_SIZE,
    DELETED,
    CallRecord,
    ExportedCall,
    FinishedCall,
    Labels,
)

R = TypeVar("R")

UNNAMED: Final = ~exists().where(call_sources.c.call_id == calls.c.id)
"""The condition that no source names a call."""


def row_of(connection: Connection, column: Column[str], value: str) -> int:
    """Return the row of a value, inserting it if necessary."""
    table = column.table
    query = select(table.c.id).where(column == value)
    while (row := connection.scalar(query)) is None:
        adding = insert(table).values({column: value}).on_conflict_do_nothing()
        connection.execute(adding.inline())
    return int(row)


def prune_finished(connection: Connection, before: float) -> int:
    """Delete up to `BATCH_SIZE` calls that finished before a Unix time; return how many.

    Calls that a source names, and calls named or pushed after that time, stay.
    """
    old = (
        select(calls.c.id)
        .where(
            calls.c.result.is_not(None),
            calls.c.finished_at < before,
            or_(calls.c.named_at.is_(None), calls.c.named_at < before),
            UNNAMED,
        )
        .limit(BATCH_SIZE)
    )
    return connection.execute(delete(calls).where(calls.c.id.in_(old))).rowcount


# Pages of calls.

FINISHED: Final = "finished"
"""The filter for calls that have a result."""

WATCHED: Final = "watched"
"""The filter for open calls, whatever their state."""

MAX_PAGE: Final = 1_000
"""Maximum of calls on a page."""

EXAMINED: Final = 20_000
"""Maximum of rows to read for a page, which takes some milliseconds."""

_result: Final[ColumnElement[str]] = func.coalesce(calls.c.result, "")
_state: Final[ColumnElement[str]] = case(
    (_result == "", calls.c.state), (_result == DELETED, DELETED), else_=FINISHED
)
_RECORD: Final = (
    select(
        calls.c.id,
        accounts.c.name,
        calls.c.reference_id,
        label_sets.c.labels,
        _state,
        *calls.c["first_watched", "result", "status", "duration", "key", "finished_at"],
        *calls.c["kind", "delivered", "failed"],
    )
    .join_from(calls, accounts)
    .join(label_sets)
)


class Page(NamedTuple, Generic[R]):
    """Records by row; the next page starts after row `next`, None at the end."""

    records: list[R]
    next: int | None


def read_page(
    connection: Connection,
    scopes: Sequence[tuple[Select[Any], Select[Any]]],  # Any: of columns
    after: int,
    limit: int,
    examined: int,
) -> Page[Row[Any]]:
    """Return a page of up to `limit` records whose row is greater than `after`.

    The row is the first column of every query. A scope is a part of the listing that an index has
    in the order of rows; its two queries are all of its rows, and the wanted records. The page is
    merged from all scopes. It reads at most `examined` rows; if few of them match the filters, it
    holds few records or none, although more pages follow.
    """
    # The last row to read: where the first scope has reached its share of `examined`.
    ends = list[int]()
    for rows, _ in scopes:
        row, share = rows.selected_columns[0], max(1, examined // len(scopes))
        ends += connection.scalars(rows.where(row > after).order_by(row).offset(share - 1).limit(1))
    end = min(ends, default=None)
    found = list[Row[Any]]()
    for _, records in scopes:
        row = records.selected_columns[0]
        wanted = records.where(row > after, *([] if end is None else [row <= end]))
        found += connection.execute(wanted.order_by(row).limit(limit))
    found = sorted(found, key=itemgetter(0))[:limit]
    return Page(found, found[-1][0] if len(found) == limit else end)


def list_calls(
    database: Database,
    names: Collection[str],
    state: str | None = None,
    result: str | None = None,
    after: int = 0,
    limit: int = MAX_PAGE,
    examined: int = EXAMINED,
) -> Page[CallRecord]:
    """Return a page of calls of some accounts, on its own connection; see `read_page`.

    `state` is a state of open calls, `FINISHED` or `WATCHED`.
    """
    with _in_order(database) as connection:
        known = select(accounts.c.id).where(accounts.c.name.in_(names))
        rows = connection.scalars(known).all()
        # Written so that no engine uses an index in another order: it would have to read and sort
        # all calls.
        wanted = [
            (calls.c.account_id + 0).in_(rows),
            func.coalesce(calls.c.canary_run_id, 0) == 0,
            _state.not_in([DELETED, *([FINISHED] if state == WATCHED else [])]),
        ]
        if state not in (None, WATCHED):
            wanted.append(_state == state)
        if result is not None:
            wanted.append(_result == result)
        parts: list[tuple[ColumnElement[bool], ...]] = [()] if rows else []
        # The index of open calls is by account.
        if state not in (None, FINISHED) and len(rows) <= EXAMINED // MAX_PAGE:
            parts = [(calls.c.account_id == row, calls.c.result.is_(None)) for row in rows]
        scopes = [
            (select(calls.c.id).where(*part), _RECORD.where(*part, *wanted)) for part in parts
        ]
        page = read_page(connection, scopes, after, limit, examined)
    return Page([*map(_record, page.records)], page.next)


@contextmanager
def _in_order(database: Database, timeout: float = READ_TIMEOUT) -> Iterator[Connection]:
    """Run a read-only transaction whose queries read rows in the order of an index."""
    with database.read(timeout) as connection:
        if database.shared:
            # If PostgreSQL expects few rows, it sorts instead of using the index; it may be wrong.
            for method in ("sort", "seqscan"):
                connection.execute(text(f"SET LOCAL enable_{method} = off"))
        yield connection


def _record(row: Row[Any]) -> CallRecord:  # Any: of columns
    record = CallRecord._make(row)
    return record._replace(labels=json.loads(row.labels))


def find_call(
    connection: Connection, account: str, reference_id: str, *, canaries: bool = True
) -> CallRecord | None:
    """Return a call, or None; a deleted one has the state `deleted`.

    With `canaries` false, calls that canaries placed are left out.
    """
    query = _RECORD.where(
        accounts.c.name == account, calls.c.normalized_id == reference_key(reference_id)
    )
    if not canaries:
        query = query.where(calls.c.canary_run_id.is_(None))
    found = connection.execute(query).first()
    return None if found is None else _record(found)


_LABEL_SETS: Final = select_json(label_sets.c.id, label_sets.c.labels).where(
    is_given(label_sets.c.id)
)


def label_sets_of(connection: Connection, rows: Collection[int]) -> dict[int, Labels]:
    """Return label sets by row, oldest first."""
    if not rows:
        return {}
    found = fetch_json(connection, _LABEL_SETS, rows=to_json_rows(rows))
    return {row: json.loads(labels) for row, labels in sorted(found)}


# Calls that finished recently.

MAX_RECENT: Final = 50_000
"""Maximum of finished calls to read, which takes some tenths of a second."""


_COUNTED: Final = (
    calls.c.result.is_not(None),
    calls.c.result != DELETED,
    calls.c.canary_run_id.is_(None),
)
"""The conditions that a call has finished and is counted."""

_ahead: Final = bindparam("ahead", type_=Float())
_FINISHED_CALLS: Final = (
    select(
        calls.c.id,
        accounts.c.name,
        *calls.c["reference_id", "result", "status", "duration", "key"],
        *(calls.c.first_watched - _ahead, calls.c.finished_at - _ahead),
        *calls.c["kind", "delivered", "failed"],
    )
    .join_from(calls, accounts)
    .where(*_COUNTED)
    .order_by(calls.c.finished_at.desc())
)


def recent_calls(
    connection: Connection,
    since: float,
    names: Collection[str] | None = None,
    ahead: float = 0.0,
    limit: int = MAX_RECENT,
) -> tuple[list[FinishedCall], float]:
    """Return the newest `limit` calls of accounts that have finished since a Unix time.

    The oldest come first. Return also the time since when they are complete. `ahead` are the
    seconds by which the ledger's clock is ahead of the clock of all times.
    """
    query = _FINISHED_CALLS.where(calls.c.finished_at >= since + ahead).limit(limit)
    if names is not None:
        # `+ 0` prevents the use of the index by account, which would read all open calls.
        wanted = select(accounts.c.id).where(accounts.c.name.in_(list(names)))
        query = query.where((calls.c.account_id + 0).in_(wanted))
    found = [*_finished(connection, query, ahead).values()][::-1]
    return found, found[0].finished_at if len(found) == limit else since


def finished_calls(
    connection: Connection, rows: Collection[int], ahead: float = 0.0
) -> dict[int, FinishedCall]:
    """Return those of the given calls that have finished, by row; see `recent_calls`."""
    return _finished(connection, _FINISHED_CALLS.where(calls.c.id.in_(list(rows))), ahead)


def _finished(connection: Connection, query: Select[Any], ahead: float) -> dict[int, FinishedCall]:
    return {
        row: FinishedCall._make([*call[:6], {}, *call[6:]])
        for row, *call in connection.execute(query, {"ahead": ahead})
    }


# All finished calls, by the time they ended.

_own_labels, _counted_labels = label_sets.alias(), label_sets.alias()
_ENDED: Final = (
    select(
        *(calls.c.id, accounts.c.name, calls.c.reference_id, calls.c.kind),
        *(_own_labels.c.labels, _counted_labels.c.labels.label("counted_labels")),
        *calls.c["result", "status", "duration", "key", "price", "delivered", "failed"],
        *calls.c["first_watched", "finished_at"],
    )
    .join_from(calls, accounts)
    .join(_own_labels, _own_labels.c.id == calls.c.label_set_id)
    .outerjoin(folded_labels, FOLDED)
    .join(_counted_labels, _counted_labels.c.id == COUNTED_AS)
    .where(*_COUNTED)
    .order_by(calls.c.finished_at, calls.c.id)
)


def finished_pages(
    database: Database, since: float, until: float, ahead: float = 0.0, limit: int = 5 * BATCH_SIZE
) -> Iterator[list[ExportedCall]]:
    """Yield the calls that finished from `since` until before `until`, in this order, in pages.

    Each page is a transaction of its own: one for all pages would keep SQLite from truncating its
    WAL, and PostgreSQL from removing dead rows. `ahead` are the seconds by which the ledger's clock
    is ahead of the clock of all times.
    """
    last, row = since + ahead, 0
    size = limit
    while size == limit:
        after = or_(calls.c.finished_at > last, calls.c.id > row)
        query = _ENDED.where(*_between(last, until + ahead), after).limit(limit)
        with _in_order(database, math.inf) as connection:
            found = connection.execute(query).all()
        if size := len(found):
            last, row = found[-1].finished_at, found[-1].id
            yield [_exported(one, ahead) for one in found]


def count_finished(database: Database, since: float, until: float, ahead: float = 0.0) -> int:
    """Return how many calls `finished_pages` yields."""
    with database.read(math.inf) as connection:
        between = _between(since + ahead, until + ahead)
        return connection.scalars(select(func.count()).where(*_COUNTED, *between)).one()


_parse_labels: Final = lru_cache(maxsize=1_000)(json.loads)  # most calls share few label sets


def _between(since: float, until: float) -> tuple[ColumnElement[bool], ...]:
    return calls.c.finished_at >= since, calls.c.finished_at < until


def _exported(row: Row[Any], ahead: float) -> ExportedCall:  # Any: of columns
    call = ExportedCall._make(row)
    return call._replace(
        labels=_parse_labels(row.labels),
        counted_labels=_parse_labels(row.counted_labels),
        first_watched=call.first_watched - ahead,
        finished_at=call.finished_at - ahead,
    )


# Sources, and the cursors of queries.

_cursor = insert(cursors)
_MOVE_CURSOR: Final = _cursor.on_conflict_do_update(
    index_elements=cursors.primary_key,
    set_={"query": _cursor.excluded.query, "read_until": _cursor.excluded.read_until},
)


def list_sources(connection: Connection) -> list[str]:
    return list(connection.scalars(select(call_sources.c.source).distinct()))


def read_cursor(connection: Connection, source: str, query: str) -> float | None:
    """Return the Unix time up to which a query has read, by the queried database's clock.

    `query` is a digest of the query; None if the source has not run that query.
    """
    found = cursors.c.source == source, cursors.c.query == query
    return connection.scalar(select(cursors.c.read_until).where(*found))


def move_cursor(connection: Connection, source: str, query: str, read_until: float) -> None:
    """Store the time up to which a query has read; see `read_cursor`."""
    connection.execute(_MOVE_CURSOR, {"source": source, "query": query, "read_until": read_until})
