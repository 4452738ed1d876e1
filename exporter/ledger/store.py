"""Reads and writes of the ledger. Blocking: `exporter.ledger.ledger` calls it from its thread."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final, TypeVar

from sqlalchemy import (
    Column,
    Connection,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    literal,
    select,
    true,
    update,
)
from sqlalchemy.dialects.sqlite import insert

from exporter.calls import CallState, WatchedCall, reference_key
from exporter.ledger.bulk import fetch, field, given, listed, packed
from exporter.ledger.commit import commit, set_price
from exporter.ledger.engine import Database
from exporter.ledger.records import (
    CHUNK,
    CallRecord,
    Committed,
    Count,
    Labels,
    NewCall,
    Observation,
    Pushed,
    Snapshot,
    StoredCall,
    Taken,
)
from exporter.ledger.schema import accounts, call_sources, calls, label_sets, totals
from exporter.ledger.totals import Cell, Total

T = TypeVar("T")

_keys: Final = given("keys")
_rows: Final = given("rows")

_UNNAMED: Final = ~exists().where(call_sources.c.call_id == calls.c.id)

_FIND: Final = listed(calls.c.account_id, calls.c.reference_key, calls.c.id).join_from(
    _keys,
    calls,
    and_(calls.c.account_id == field(_keys, 0), calls.c.reference_key == field(_keys, 1)),
)
_INSERT: Final = insert(calls).from_select(
    [
        calls.c.account_id,
        calls.c.reference_key,
        calls.c.reference_id,
        calls.c.label_set_id,
        calls.c.pushed,
        calls.c.first_watched,
        calls.c.state,
        calls.c.state_since,
    ],
    select(
        *(field(_rows, number) for number in range(4)),
        bindparam("pushed"),
        bindparam("now"),
        literal(CallState.NEW.value),
        bindparam("now"),
    ).select_from(_rows),
    include_defaults=False,
)
_PUSH: Final = update(calls).where(calls.c.id.in_(select(_rows.c.value))).values(pushed=True)
_NAME: Final = (
    insert(call_sources)
    # `WHERE true`: without it, SQLite takes what follows for a part of the join.
    .from_select(["source", "call_id"], select(bindparam("source"), _rows.c.value).where(true()))
    .on_conflict_do_nothing()
)
_DROPPED: Final = listed(call_sources.c.call_id).where(
    call_sources.c.source == bindparam("source"),
    call_sources.c.call_id.not_in(select(_rows.c.value)),
)
_UNFINISHED_PAGE: Final = (
    select(
        calls.c.id,
        calls.c.reference_id,
        calls.c.first_watched,
        calls.c.state,
        calls.c.state_since,
        calls.c.label_set_id,
    )
    .join(accounts)
    .where(
        accounts.c.name == bindparam("account"),
        calls.c.result.is_(None),
        calls.c.id > bindparam("after"),
    )
    .order_by(calls.c.id)
    .limit(CHUNK)
    .subquery()
)
_UNFINISHED: Final = listed(*_UNFINISHED_PAGE.c)
_RECORD: Final = (
    select(
        calls.c.id,
        accounts.c.name,
        calls.c.reference_id,
        label_sets.c.labels,
        calls.c.state,
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

FINISHED: Final = "finished"
"""The state of a call that has a result."""


class Store:
    """The statements, on an open database. Each method is one transaction, or a few short ones."""

    def __init__(self, database: Database) -> None:
        self._database = database
        count = select(func.count()).where(calls.c.result.is_(None))
        with database.begin() as connection:
            # Kept up to date from here on: to count a million takes longer than to take one in.
            self._unfinished = int(connection.scalar(count) or 0)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def snapshot(self) -> Snapshot:
        """Return all that the metrics of finished calls are made of."""
        # Row by row: SQLite would round the values in a text, and a counter would go backwards.
        query = select(
            accounts.c.name,
            totals.c.label_set_id,
            totals.c.total,
            totals.c.cell,
            totals.c.value,
        ).join(accounts)
        with self._database.begin() as connection:
            return Snapshot(
                _label_sets(connection),
                {
                    Cell(name, labels, Total(total), cell): value
                    for name, labels, total, cell, value in connection.execute(query)
                },
            )

    def unfinished(self, account: str, after: int = 0) -> list[StoredCall]:
        """Return the first `CHUNK` of an account's calls that have not finished, after a row."""
        with self._database.begin() as connection:
            rows = fetch(connection, _UNFINISHED, account=account, after=after)
        # Calls that were taken in together share their times: an eighth of what a call takes.
        times: dict[float, float] = {}
        return [
            StoredCall(
                account,
                labels,
                WatchedCall(
                    row,
                    text,
                    times.setdefault(watched, watched),
                    CallState(state),
                    times.setdefault(since, since),
                ),
            )
            for row, text, watched, state, since, labels in sorted(rows)
        ]

    def sources(self) -> list[str]:
        """Return every source that names a call."""
        with self._database.begin() as connection:
            return list(connection.scalars(select(call_sources.c.source).distinct()))

    def watch(
        self,
        source: str | None,
        new: Sequence[NewCall],
        now: float,
        max_calls: float = math.inf,
    ) -> Taken:
        """Take up to `CHUNK` calls in; those that are known already stay as they are.

        Args:
            source: the configuration or file that names them; None for calls that are pushed.
            new: the calls; of one that stands there twice, the first counts.
            now: Unix time.
            max_calls: how many may be unfinished at a time; those beyond are refused.
        """
        with self._database.begin() as connection:
            ids = _account_rows(connection, new)
            wanted: dict[tuple[int, str], NewCall] = {}
            for call in new:
                wanted.setdefault((ids[call.account], reference_key(call.reference_id)), call)
            known = _find(connection, wanted)
            missing = [(key, call) for key, call in wanted.items() if key not in known]
            room = max(0, max_calls - self._unfinished)
            refused = int(max(0, len(missing) - room))
            missing = missing[: len(missing) - refused]
            added = self._insert(connection, missing, now, pushed=source is None)
            rows = {*known.values(), *(stored.call.id for stored in added)}
            if source is None:
                connection.execute(_PUSH, {"rows": packed(known.values())})
            else:
                connection.execute(_NAME, {"source": source, "rows": packed(rows)})
        self._unfinished += len(added)
        return Taken(added, _sets(added, missing), rows, refused)

    def push(
        self, requests: Sequence[Sequence[NewCall]], now: float, max_calls: float = math.inf
    ) -> Pushed:
        """Take the calls of requests in, each request as a whole or not at all.

        Args:
            requests: some `CHUNK` calls, or one request of any size.
            now: Unix time.
            max_calls: how many calls may be unfinished at a time.
        """
        with self._database.begin() as connection:
            ids = _account_rows(connection, chain.from_iterable(requests))
            keyed = [
                [((ids[call.account], reference_key(call.reference_id)), call) for call in request]
                for request in requests
            ]
            known = _find(connection, {key for request in keyed for key, _ in request})
            room = max_calls - self._unfinished
            missing: dict[tuple[int, str], NewCall] = {}
            named: set[int] = set()
            counts: list[Count | None] = []
            for request in keyed:
                new: dict[tuple[int, str], NewCall] = {}
                for key, call in request:
                    if key not in known and key not in missing:
                        new.setdefault(key, call)
                if new and len(missing) + len(new) > room:
                    counts.append(None)
                    continue
                missing |= new
                named.update(known[key] for key, _ in request if key in known)
                counts.append(Count(len(new), len(request) - len(new)))
            items = list(missing.items())
            added = self._insert(connection, items, now, pushed=True)
            if named:
                connection.execute(_PUSH, {"rows": packed(named)})
        self._unfinished += len(added)
        return Pushed(added, _sets(added, items), counts)

    def page(
        self,
        names: Iterable[str],
        state: str | None = None,
        result: str | None = None,
        after: int = 0,
        limit: int = CHUNK,
    ) -> list[CallRecord]:
        """Return calls of these accounts in the order of their rows.

        Args:
            names: of accounts.
            state: only calls in this state; `finished` for those that have a result.
            result: only calls with this result.
            after: only calls after this row.
            limit: how many at most.
        """
        query = _RECORD.where(accounts.c.name.in_(list(names)), calls.c.id > after)
        if state == FINISHED:
            query = query.where(calls.c.result.is_not(None))
        elif state is not None:
            query = query.where(calls.c.result.is_(None), calls.c.state == state)
        if result is not None:
            query = query.where(calls.c.result == result)
        with self._database.begin() as connection:
            return _records(connection, query.order_by(calls.c.id).limit(limit))

    def find(self, account: str, reference_id: str) -> CallRecord | None:
        """Return a call, if it is known."""
        query = _RECORD.where(
            accounts.c.name == account, calls.c.reference_key == reference_key(reference_id)
        )
        with self._database.begin() as connection:
            return next(iter(_records(connection, query)), None)

    def delete(self, row: int) -> bool:
        """Forget a call that has not finished, whoever names it; returns whether there was one."""
        unfinished = delete(calls).where(calls.c.id == row, calls.c.result.is_(None))
        with self._database.begin() as connection:
            deleted = connection.execute(unfinished).rowcount
        self._unfinished -= deleted
        return bool(deleted)

    def keep_only(self, source: str, rows: set[int]) -> list[int]:
        """Forget that `source` names any call but `rows`.

        Returns:
            The unfinished calls that nothing names any more: they are deleted, and not counted.
        """
        with self._database.begin() as connection:
            dropped = [
                row for (row,) in fetch(connection, _DROPPED, source=source, rows=packed(rows))
            ]
        gone: list[int] = []
        for chunk in _chunks(dropped):
            with self._database.begin() as connection:
                connection.execute(
                    delete(call_sources).where(
                        call_sources.c.source == source, call_sources.c.call_id.in_(chunk)
                    )
                )
                let_go = delete(calls).where(
                    calls.c.id.in_(chunk),
                    calls.c.result.is_(None),
                    calls.c.pushed.is_(False),
                    _UNNAMED,
                )
                deleted = connection.scalars(let_go.returning(calls.c.id)).all()
            self._unfinished -= len(deleted)
            gone += deleted
        return gone

    def commit(self, observations: Sequence[Observation]) -> Committed:
        """Write what polls found out; see `exporter.ledger.commit`."""
        with self._database.begin() as connection:
            committed = commit(connection, observations)
        self._unfinished -= committed.finished
        return committed

    def set_price(self, row: int, price: float) -> dict[Cell, float]:
        """Write what a call has cost; see `exporter.ledger.commit`."""
        with self._database.begin() as connection:
            return set_price(connection, row, price)

    def prune(self, before: float) -> int:
        """Forget up to `CHUNK` calls that finished before a Unix time and that no file names.

        Returns:
            How many; fewer than `CHUNK` when there are no more. Totals are never pruned.
        """
        old = (
            select(calls.c.id)
            .where(calls.c.result.is_not(None), calls.c.finished_at < before, _UNNAMED)
            .limit(CHUNK)
        )
        with self._database.begin() as connection:
            return connection.execute(delete(calls).where(calls.c.id.in_(old))).rowcount

    def _insert(
        self,
        connection: Connection,
        missing: Sequence[tuple[tuple[int, str], NewCall]],
        now: float,
        *,
        pushed: bool,
    ) -> list[StoredCall]:
        if not missing:
            return []
        texts = [_canonical(call.labels) for _, call in missing]
        known = {text: _row_of(connection, label_sets.c.labels, text) for text in set(texts)}
        labels = [known[text] for text in texts]
        rows = packed(
            (account, key, call.reference_id, label_set)
            for ((account, key), call), label_set in zip(missing, labels, strict=True)
        )
        connection.execute(_INSERT, {"rows": rows, "pushed": pushed, "now": now})
        found = _find(connection, [key for key, _ in missing])
        return [
            StoredCall(
                call.account,
                label_set,
                WatchedCall(found[key], call.reference_id, now, CallState.NEW, now),
            )
            for (key, call), label_set in zip(missing, labels, strict=True)
        ]


def _account_rows(connection: Connection, new: Iterable[NewCall]) -> dict[str, int]:
    """Return the rows of the accounts of calls, making those that there are not."""
    return {
        name: _row_of(connection, accounts.c.name, name) for name in {call.account for call in new}
    }


def _sets(
    added: Iterable[StoredCall], missing: Iterable[tuple[object, NewCall]]
) -> dict[int, Labels]:
    return {stored.labels: call.labels for stored, (_, call) in zip(added, missing, strict=True)}


def _records(connection: Connection, query: Select[Any]) -> list[CallRecord]:  # Any: of columns
    return [
        CallRecord(row, account, text, json.loads(labels), FINISHED if rest[1] else state, *rest)
        for row, account, text, labels, state, *rest in connection.execute(query)
    ]


def _find(connection: Connection, keys: Iterable[tuple[int, str]]) -> dict[tuple[int, str], int]:
    """Return the rows of the calls with these accounts and keys, where there are any."""
    rows = fetch(connection, _FIND, keys=packed(keys))
    return {(account, key): row for account, key, row in rows}


def _row_of(connection: Connection, column: Column[str], value: str) -> int:
    """Return the row that holds a value, making one where there is none."""
    table = column.table
    row = connection.scalar(select(table.c.id).where(column == value))
    if row is None:
        row = connection.scalar(insert(table).values({column: value}).returning(table.c.id))
    return int(row)


def _label_sets(connection: Connection) -> dict[int, Labels]:
    query = listed(label_sets.c.id, label_sets.c.labels)
    return {row: json.loads(labels) for row, labels in sorted(fetch(connection, query))}


def _canonical(labels: Labels) -> str:
    return json.dumps(dict(sorted(labels.items())), separators=(",", ":"))


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]
