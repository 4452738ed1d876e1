"""Taking calls in: those that are known stay as they are, the others are new."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import Final

from sqlalchemy import (
    Column,
    Connection,
    and_,
    bindparam,
    delete,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.sqlite import insert

from exporter.calls import CallState, WatchedCall, reference_key
from exporter.ledger.bulk import fetch, field, given, listed, packed
from exporter.ledger.records import DELETED, Count, Labels, NewCall, Pushed, StoredCall, Taken
from exporter.ledger.schema import accounts, call_sources, calls, label_sets

NAMED_LATELY: Final = 600.0
"""Seconds for which it is not noted again that a finished call is still named."""

_keys: Final = given("keys")
_rows: Final = given("rows")

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
# Not each time, because a query may name the same thousands of calls every minute.
_PUSH: Final = (
    update(calls)
    .where(
        calls.c.id.in_(select(_rows.c.value)),
        or_(
            calls.c.pushed.is_(False),
            and_(
                calls.c.finished_at < bindparam("lately"),
                or_(calls.c.named_at.is_(None), calls.c.named_at < bindparam("lately")),
            ),
        ),
    )
    .values(pushed=True, named_at=bindparam("now"))
)
_DELETED: Final = listed(calls.c.id).where(
    calls.c.id.in_(select(_rows.c.value)), calls.c.result == DELETED
)
_FORGET: Final = delete(calls).where(calls.c.id.in_(select(_rows.c.value)))
_NAME: Final = (
    insert(call_sources)
    # `WHERE true`: without it, SQLite takes what follows for a part of the join.
    .from_select(["source", "call_id"], select(bindparam("source"), _rows.c.value).where(true()))
    .on_conflict_do_nothing()
)


def take(
    connection: Connection,
    source: str | None,
    new: Sequence[NewCall],
    now: float,
    room: float,
) -> Taken:
    """Take calls in for a source; see `Store.watch`.

    Args:
        connection: in a transaction.
        source: who names them; None for calls that are pushed.
        new: the calls.
        now: Unix time.
        room: how many may be new; those beyond are refused.
    """
    ids = _account_rows(connection, new)
    wanted: dict[tuple[int, str], NewCall] = {}
    for call in new:
        wanted.setdefault((ids[call.account], reference_key(call.reference_id)), call)
    known = _find(connection, wanted)
    revived = _deleted(connection, known) if source is not None else {}
    known = {key: row for key, row in known.items() if key not in revived}
    missing = [(key, call) for key, call in wanted.items() if key not in known]
    refused = int(max(0, len(missing) - max(0, room)))
    missing = missing[: len(missing) - refused]
    _forget(connection, [revived[key] for key, _ in missing if key in revived])
    added = _insert(connection, missing, now, pushed=source is None)
    rows = {*known.values(), *(stored.call.id for stored in added)}
    if source is None:
        _push(connection, known.values(), now)
    else:
        connection.execute(_NAME, {"source": source, "rows": packed(rows)})
    return Taken(added, _sets(added, missing), rows, refused)


def push(
    connection: Connection, requests: Sequence[Sequence[NewCall]], now: float, room: float
) -> Pushed:
    """Take the calls of requests in; see `Store.push`.

    Args:
        connection: in a transaction.
        requests: the calls of each.
        now: Unix time.
        room: how many may be new; requests that do not fit are refused.
    """
    ids = _account_rows(connection, chain.from_iterable(requests))
    keyed = [
        [((ids[call.account], reference_key(call.reference_id)), call) for call in request]
        for request in requests
    ]
    known = _find(connection, {key for request in keyed for key, _ in request})
    revived = _deleted(connection, known)
    known = {key: row for key, row in known.items() if key not in revived}
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
    _forget(connection, [revived[key] for key in missing if key in revived])
    added = _insert(connection, items, now, pushed=True)
    _push(connection, named, now)
    return Pushed(added, _sets(added, items), counts)


def _push(connection: Connection, rows: Collection[int], now: float) -> None:
    """Note that calls that are known were handed over again."""
    if rows:
        parameters = {"rows": packed(rows), "now": now, "lately": now - NAMED_LATELY}
        connection.execute(_PUSH, parameters)


def _deleted(
    connection: Connection, known: dict[tuple[int, str], int]
) -> dict[tuple[int, str], int]:
    """Return those of known calls that were deleted: to want them again makes new ones of them."""
    if not known:
        return {}
    rows = {row for (row,) in fetch(connection, _DELETED, rows=packed(known.values()))}
    return {key: row for key, row in known.items() if row in rows}


def _forget(connection: Connection, rows: Collection[int]) -> None:
    if rows:
        connection.execute(_FORGET, {"rows": packed(rows)})


def _insert(
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


def _canonical(labels: Labels) -> str:
    return json.dumps(dict(sorted(labels.items())), separators=(",", ":"))
