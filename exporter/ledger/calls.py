"""Statements that add, remove, list and count calls."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Float,
    Select,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from exporter.calls import CallState, Result, Status, WatchedCall
from exporter.errors import LedgerConflictError
from exporter.ids import reference_key
from exporter.ledger.engine import Database
from exporter.ledger.json_rows import (
    ROWS,
    fetch_json,
    field,
    insert_rows,
    is_given,
    select_json,
    to_json_rows,
)
from exporter.ledger.labels import NO_LIMITS, LabelLimits, canonical, count_labels
from exporter.ledger.leases import FORGET, notify_holders, notify_of_totals
from exporter.ledger.schema import (
    UNFINISHED_ROW,
    accounts,
    call_sources,
    calls,
    cursors,
    label_sets,
)
from exporter.ledger.types import (
    BATCH_SIZE,
    DELETED,
    CallRecord,
    Count,
    FinishedCall,
    InsertResult,
    Labels,
    NewCall,
    StoredCall,
)

# Adding calls.

_NAMING_INTERVAL: Final = 600.0

_Key = tuple[int, str]
"""The row of an account, and a normalized id."""


class Sharing(NamedTuple):
    """This exporter as one of several that share the ledger.

    Attributes:
        exporter: the id of this process.
        epochs: the epochs of the leases that it holds, by account.
    """

    exporter: str
    epochs: Mapping[str, int]


Room = Callable[[Connection, Mapping[str, int]], dict[str, float]]

_NOW: Final = bindparam("now", type_=Float())
_FIND: Final = select_json(
    calls.c.account_id, calls.c.normalized_id, calls.c.id, calls.c.epoch, calls.c.result
).join_from(
    ROWS,
    calls,
    and_(
        calls.c.account_id == field(0, calls.c.account_id),
        calls.c.normalized_id == field(1, calls.c.normalized_id),
    ),
)
_INSERT: Final = insert_rows(
    calls.c.account_id,
    calls.c.normalized_id,
    calls.c.reference_id,
    calls.c.label_set_id,
    calls.c.epoch,
    calls.c.pushed,
    calls.c.first_watched,
    calls.c.state,
    calls.c.state_since,
)


def _locked(*conditions: ColumnElement[bool], key_share: bool = True) -> ColumnElement[bool]:
    """Return a condition that selects the given calls that meet `conditions`, and locks them.

    The rows are locked in a fixed order, to avoid deadlocks. With `key_share`, inserts into
    `call_sources` are not blocked.
    """
    rows = select(calls.c.id).where(is_given(calls.c.id), *conditions).order_by(calls.c.id)
    return calls.c.id.in_(rows.with_for_update(key_share=key_share))


# Write only if the last write is not recent: a query may return the same calls every minute.
_recent = bindparam("recent", type_=Float())
_PUSH: Final = (
    update(calls)
    .where(
        _locked(
            or_(
                calls.c.pushed.is_(False),
                and_(
                    calls.c.finished_at < _recent,
                    or_(calls.c.named_at.is_(None), calls.c.named_at < _recent),
                ),
            )
        )
    )
    .values(pushed=True, named_at=_NOW)
)
_COUNT: Final = select(func.count()).where(is_given(calls.c.id))
_FORGET: Final = delete(calls).where(_locked(key_share=False))
_NAME: Final = insert_rows(call_sources.c.source, call_sources.c.call_id)


def naming_interval(memory: float) -> float:
    """Return the minimum interval between updates of `named_at`, in seconds.

    Args:
        memory: retention of finished calls, in seconds. The interval is short enough that a query
            which returns a call twice in that time keeps it from being pruned.
    """
    return min(_NAMING_INTERVAL, memory / 4)


def insert_calls(  # noqa: PLR0913 - what differs between sources and between exporters
    connection: Connection,
    requests: Sequence[Sequence[NewCall]],
    now: float,
    room: Room,
    *,
    source: str | None = None,
    whole: bool = False,
    sharing: Sharing | None = None,
    interval: float = _NAMING_INTERVAL,
    limits: LabelLimits = NO_LIMITS,
) -> InsertResult:
    """Add the calls of requests; existing calls do not change.

    Deleted calls are added again, unless they come from a query.

    Args:
        connection: in a transaction.
        requests: the calls of each request; of duplicates, the first counts.
        now: Unix time.
        room: returns how many calls may be added, by account.
        source: the source that names them; None for pushed calls.
        whole: if not all calls of a request fit, refuse all of them, not only the excess.
        sharing: this exporter; None if the ledger is not shared.
        interval: see `naming_interval`.
        limits: limits of the labels of each account.
    """
    names = {call.account for call in chain.from_iterable(requests)}
    ids = {name: row_of(connection, accounts.c.name, name) for name in sorted(names)}
    keyed = [
        [((ids[call.account], reference_key(call.reference_id)), call) for call in request]
        for request in requests
    ]
    found = _find(connection, {key for request in keyed for key, _ in request})
    # Not for queries, which may still return deleted calls.
    revive = whole or source is not None
    known = {
        key: row for key, (row, _, result) in found.items() if not (revive and result == DELETED)
    }
    missing, rows, refused = dict[_Key, NewCall](), set[int](), Counter[str]()
    left, counts = room(connection, ids), list[Count | str]()
    for request in keyed:
        new, again, room_left, full = dict[_Key, NewCall](), list[int](), dict(left), ""
        for key, call in request:
            if key in known:
                again.append(known[key])
            elif key not in missing and key not in new:
                if room_left[call.account] >= 1:
                    room_left[call.account] -= 1
                    new[key] = call
                else:
                    full = call.account
                    refused[full] += 1
        if full and whole:
            counts.append(full)
            continue
        missing |= new
        rows.update(again)
        left = room_left
        counts.append(Count(len(new), len(request) - len(new)))
    if revived := [found[key][0] for key in missing if key in found]:
        connection.execute(_FORGET, {"rows": to_json_rows(revived)})
    inserted = _insert(connection, missing, now, sharing, limits, pushed=source is None)
    if source is None:
        _push(connection, rows, now, interval, sharing)
    rows |= inserted.rows
    if source is not None:
        named = to_json_rows((source, row) for row in sorted(rows))
        connection.execute(_NAME, {"rows": named})
    return inserted._replace(counts=counts, refused=refused, rows=rows)


def keep_call(connection: Connection, row: int, now: float, interval: float) -> bool:
    """Record that a call was pushed again; return whether it exists."""
    connection.execute(_PUSH, {"rows": to_json_rows([row]), "now": now, "recent": now - interval})
    return connection.scalar(select(calls.c.id).where(calls.c.id == row)) is not None


def _push(
    connection: Connection,
    rows: Collection[int],
    now: float,
    interval: float,
    sharing: Sharing | None,
) -> None:
    """Record that existing calls were pushed again.

    Raises:
        LedgerConflictError: another exporter has removed one of them.
    """
    if not rows:
        return
    given = {"rows": to_json_rows(rows)}
    connection.execute(_PUSH, {**given, "now": now, "recent": now - interval})
    # The rows are locked now: no exporter can remove them before the commit.
    if sharing is not None and connection.scalar(_COUNT, given) != len(rows):
        raise LedgerConflictError("ledger: a call was removed while it was pushed again")


def _insert(
    connection: Connection,
    missing: Mapping[_Key, NewCall],
    now: float,
    sharing: Sharing | None,
    limits: LabelLimits,
    *,
    pushed: bool,
) -> InsertResult:
    """Add missing calls. `rows` includes calls that another exporter inserted first."""
    names = {key: (call.account, canonical(call.labels)) for key, call in missing.items()}
    labels = {names[key]: call.labels for key, call in missing.items()}
    ids = {call.account: account for (account, _), call in missing.items()}
    counted = count_labels(connection, ids, labels, limits)
    if sharing is not None:
        notify_of_totals(connection, sharing.exporter, {name for name, _ in chain(*counted.series)})
    epochs = sharing.epochs if sharing else {}
    state = CallState.NEW.value
    # Insert in a fixed order to avoid deadlocks between exporters.
    ordered = sorted(missing.items(), key=itemgetter(0)) if sharing else missing.items()
    values = to_json_rows(
        (
            *key,
            call.reference_id,
            counted.sets[names[key]][0],
            epochs.get(call.account, 0),
            *(pushed, now, state, now),
        )
        for key, call in ordered
    )
    found = dict[_Key, tuple[int, int, str | None]]()
    # Retry if another exporter inserted a call first and deleted it again.
    while len(found) < len(missing):
        connection.execute(_INSERT, {"rows": values})
        found = _find(connection, missing)
    mine = [
        StoredCall(
            call.account,
            counted.sets[names[key]][1],
            WatchedCall(found[key][0], call.reference_id, now, CallState.NEW, now),
        )
        for key, call in missing.items()
        # Calls that another exporter inserted first are claimed by the holder of the lease.
        if found[key][1] == epochs.get(call.account, 0)
    ]
    rows = {row for row, *_ in found.values()}
    return InsertResult(mine, counted.labels, [], Counter(), rows, counted.series)


def _find(connection: Connection, keys: Iterable[_Key]) -> dict[_Key, tuple[int, int, str | None]]:
    """Return the row, epoch and result of each existing call, by key."""
    found = fetch_json(connection, _FIND, rows=to_json_rows(keys))
    return {(account, key): (row, epoch, result) for account, key, row, epoch, result in found}


def row_of(connection: Connection, column: Column[str], value: str) -> int:
    """Return the row of a value, inserting it if necessary."""
    table = column.table
    query = select(table.c.id).where(column == value)
    while (row := connection.scalar(query)) is None:
        adding = insert(table).values({column: value}).on_conflict_do_nothing()
        connection.execute(adding.inline())
    return int(row)


# Counting open calls, for `watch.max_calls`.

_OPEN: Final = select(func.count().label("calls"), func.max(calls.c.id).label("newest")).where(
    calls.c.result.is_(None)
)
_BY_ACCOUNT: Final = _OPEN.add_columns(calls.c.account_id).group_by(calls.c.account_id).subquery()
_ALL: Final = select(accounts.c.name, _BY_ACCOUNT.c.calls, _BY_ACCOUNT.c.newest).join_from(
    accounts, _BY_ACCOUNT
)
_NEWER: Final = _OPEN.where(
    calls.c.account_id == bindparam("account"), calls.c.id > bindparam("newest")
)


class OpenCalls:
    """The number of open calls by account, kept in memory: counting a million takes 0.1 s.

    In a shared ledger, `room` adds the calls that other exporters have inserted since it was last
    called. Calls that they finish are subtracted by the next `recount` only; until then, the count
    may be too high.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.recount()

    def recount(self) -> None:
        """Count all open calls again."""
        with self._database.begin() as connection:
            found = connection.execute(_ALL).all()
        self._calls = Counter({name: count for name, count, _ in found})
        self._newest = {name: newest for name, _, newest in found}

    def room(
        self, connection: Connection, rows: Mapping[str, int], limit: float
    ) -> dict[str, float]:
        """Return how many calls may be added, by account.

        Args:
            connection: in a transaction.
            rows: the rows of the accounts.
            limit: maximum of open calls per account.
        """
        if self._database.shared:
            for name, row in rows.items():
                newer = {"account": row, "newest": self._newest.get(name, 0)}
                count, newest = connection.execute(_NEWER, newer).one()
                if count:
                    self._calls[name] += count
                    self._newest[name] = newest
        return {name: limit - self._calls[name] for name in rows}

    def add(self, inserted: Iterable[StoredCall]) -> None:
        """Add calls that this exporter has inserted."""
        for account, _, call in inserted:
            self._calls[account] += 1
            self._newest[account] = max(call.id, self._newest.get(account, 0))

    def remove(self, ended: Counter[str]) -> None:
        """Subtract calls that are no longer open."""
        self._calls.subtract(ended)


# Removing calls.

_ACCOUNT: Final = select(accounts.c.name).join_from(calls, accounts)
_UNNAMED: Final = ~exists().where(call_sources.c.call_id == calls.c.id)
# The retention of a finished call starts when it was last named.
_NAMED_UNTIL: Final = (
    update(calls).where(_locked(calls.c.result.is_not(None))).values(named_at=_NOW)
)
_NOT_IN: Final = select_json(call_sources.c.call_id).where(
    call_sources.c.source == bindparam("source"), ~is_given(call_sources.c.call_id)
)


def delete_call(connection: Connection, row: int, now: float, exporter: str | None) -> Counter[str]:
    """Delete a call; see `Store.delete`. Return the number of deleted calls, by account."""
    unfinished = update(calls).where(calls.c.id == row, calls.c.result.is_(None))
    if not connection.execute(unfinished.values(result=DELETED, finished_at=now)).rowcount:
        return Counter()
    connection.execute(delete(call_sources).where(call_sources.c.call_id == row))
    notify_holders(connection, exporter, [row], FORGET)
    return Counter(connection.scalars(_ACCOUNT.where(calls.c.id == row)))


def calls_not_in(connection: Connection, source: str, rows: set[int]) -> list[int]:
    """Return the calls that a source names, except some rows."""
    return [
        row for (row,) in fetch_json(connection, _NOT_IN, source=source, rows=to_json_rows(rows))
    ]


def remove_source(
    connection: Connection, source: str, rows: Sequence[int], exporter: str | None, now: float
) -> dict[int, str]:
    """Record that a source no longer names calls; their retention starts now.

    Returns:
        The accounts, by row, of open calls that no source names any more. They are removed, not
        counted.
    """
    named = call_sources.c.source == source, call_sources.c.call_id.in_(rows)
    connection.execute(delete(call_sources).where(*named))
    connection.execute(_NAMED_UNTIL, {"rows": to_json_rows(rows), "now": now})
    left = calls.c.id.in_(rows), UNFINISHED_ROW, calls.c.pushed.is_(False)
    if exporter is not None:
        # Wait for other exporters that are naming one of the calls; the next query sees the result.
        held = select(calls.c.id).where(*left).order_by(calls.c.id).with_for_update()
        connection.execute(held)
    unnamed = _ACCOUNT.add_columns(calls.c.id).where(*left, _UNNAMED)
    gone = {row: name for name, row in connection.execute(unnamed)}
    notify_holders(connection, exporter, list(gone), FORGET)
    connection.execute(delete(calls).where(calls.c.id.in_(gone)))
    return gone


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
            _UNNAMED,
        )
        .limit(BATCH_SIZE)
    )
    return connection.execute(delete(calls).where(calls.c.id.in_(old))).rowcount


# Reading calls.

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
        calls.c.first_watched,
        calls.c.result,
        calls.c.status,
        calls.c.duration,
        calls.c.key,
        calls.c.finished_at,
    )
    .join_from(calls, accounts)
    .join(label_sets)
)


class Page(NamedTuple):
    """Calls in the order of their rows; the next page starts after row `next`, None at the end."""

    records: list[CallRecord]
    next: int | None


def list_calls(
    database: Database,
    names: Collection[str],
    state: str | None = None,
    result: str | None = None,
    after: int = 0,
    limit: int = MAX_PAGE,
    examined: int = EXAMINED,
) -> Page:
    """Return a page of calls of some accounts, on a connection of its own.

    A page reads at most `examined` rows. If few of them match the filters, it holds few calls or
    none, although more pages follow.

    Args:
        database: the ledger.
        names: the accounts.
        state: only calls in this state, or with `FINISHED` or `WATCHED`.
        result: only calls with this result.
        after: only calls after this row.
        limit: maximum of calls on the page.
        examined: maximum of rows to read.

    Raises:
        LedgerError: the database failed, or took too long.
    """
    with database.read() as connection:
        if database.shared:
            # If PostgreSQL expects few rows, it sorts instead of using the index; it may be wrong.
            for way in ("sort", "seqscan"):
                connection.execute(text(f"SET LOCAL enable_{way} = off"))
        known = select(accounts.c.id).where(accounts.c.name.in_(names))
        rows = connection.scalars(known).all()
        # A scope is a condition with an index in the order of rows; the page is merged from all
        # scopes. The index of open calls is by account, so each account is a scope.
        scopes: list[tuple[ColumnElement[bool], ...]] = [()] if rows else []
        if state not in (None, FINISHED) and len(rows) <= EXAMINED // MAX_PAGE:
            scopes = [(calls.c.account_id == row, calls.c.result.is_(None)) for row in rows]
        ends = [_end(connection, scope, after, max(1, examined // len(scopes))) for scope in scopes]
        end = min((row for row in ends if row is not None), default=None)
        found: list[CallRecord] = []
        for scope in scopes:
            query = _RECORD.where(*scope, calls.c.id > after, *_wanted(rows, state, result))
            if end is not None:
                query = query.where(calls.c.id <= end)
            found += _records(connection, query.order_by(calls.c.id).limit(limit))
    found = sorted(found)[:limit]  # by row, the first field
    return Page(found, found[-1].id if len(found) == limit else end)


def _end(
    connection: Connection, scope: tuple[ColumnElement[bool], ...], after: int, size: int
) -> int | None:
    """Return the last of the first `size` rows of an index; None if it has fewer."""
    query = select(calls.c.id).where(*scope, calls.c.id > after)
    return connection.scalar(query.order_by(calls.c.id).offset(size - 1).limit(1))


def _wanted(
    rows: Sequence[int], state: str | None, result: str | None
) -> Iterator[ColumnElement[bool]]:
    """Yield the filters as conditions.

    They are written so that no engine uses an index in another order: it would have to read and
    sort all calls.
    """
    yield (calls.c.account_id + 0).in_(rows)
    yield func.coalesce(calls.c.canary_run_id, 0) == 0
    yield _state.not_in([DELETED, *([FINISHED] if state == WATCHED else [])])
    if state not in (None, WATCHED):
        yield _state == state
    if result is not None:
        yield _result == result


def _records(connection: Connection, query: Select[Any]) -> list[CallRecord]:  # Any: of columns
    return [
        CallRecord(row, account, name, json.loads(labels), *rest)
        for row, account, name, labels, *rest in connection.execute(query)
    ]


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
    return next(iter(_records(connection, query)), None)


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


class Past(NamedTuple):
    """Finished calls, oldest first; complete since the Unix time `since`."""

    calls: list[FinishedCall]
    since: float


_FINISHED_CALLS: Final = (
    select(
        calls.c.id,
        accounts.c.name,
        calls.c.reference_id,
        calls.c.result,
        calls.c.status,
        calls.c.first_watched,
        calls.c.finished_at,
    )
    .join_from(calls, accounts)
    .where(calls.c.result.is_not(None), calls.c.result != DELETED, calls.c.canary_run_id.is_(None))
    .order_by(calls.c.finished_at.desc())
)


def recent_calls(
    connection: Connection,
    since: float,
    names: Collection[str] | None = None,
    limit: int = MAX_RECENT,
) -> Past:
    """Return the newest `limit` calls of accounts that have finished since a Unix time."""
    query = _FINISHED_CALLS.where(calls.c.finished_at >= since).limit(limit)
    if names is not None:
        query = query.where(accounts.c.name.in_(list(names)))
    found = [*_finished(connection, query).values()][::-1]
    return Past(found, found[0].finished_at if len(found) == limit else since)


def ended_of(connection: Connection, rows: Collection[int]) -> dict[int, FinishedCall]:
    """Return the finished ones of some calls, by row."""
    return _finished(connection, _FINISHED_CALLS.where(calls.c.id.in_(list(rows))))


def _finished(connection: Connection, query: Select[Any]) -> dict[int, FinishedCall]:
    return {
        row: FinishedCall(name, reference_id, Result(result), Status(status), *times)
        for row, name, reference_id, result, status, *times in connection.execute(query)
    }


# Sources, and the cursors of queries.

_cursor = insert(cursors)
_MOVE_CURSOR: Final = _cursor.on_conflict_do_update(
    index_elements=cursors.primary_key,
    set_={"query": _cursor.excluded.query, "read_until": _cursor.excluded.read_until},
)


def list_sources(connection: Connection) -> list[str]:
    """Return every source that names a call."""
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
