"""Taking calls in: those that are known stay as they are, the others are new."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Final, NamedTuple

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Float,
    and_,
    bindparam,
    delete,
    func,
    literal,
    or_,
    select,
    true,
    update,
)

from exporter.calls import CallState, WatchedCall
from exporter.errors import LedgerConflictError
from exporter.ids import reference_key
from exporter.ledger.bulk import OrIgnore, fetch, field, given, item, listed, packed
from exporter.ledger.label_limits import NO_LIMITS, LabelLimits, canonical
from exporter.ledger.labels import count_labels
from exporter.ledger.leases import notify_of_totals
from exporter.ledger.records import (
    DELETED,
    NO_SERIES_CHANGES,
    Count,
    Labels,
    NewCall,
    Pushed,
    SeriesChanges,
    StoredCall,
    Taken,
)
from exporter.ledger.schema import accounts, call_sources, calls

_NAMED_LATELY: Final = 600.0

_Key = tuple[int, str]
"""The row of an account, and an id as ids are compared."""


class Sharing(NamedTuple):
    """This exporter as one of several that share the ledger.

    Attributes:
        exporter: the id of this process.
        epochs: of the leases that it holds, by account: what it takes in of these, it polls.
    """

    exporter: str
    epochs: Mapping[str, int]


Room = Callable[[Connection, Mapping[str, int]], dict[str, float]]

_keys: Final = given("keys")
_rows: Final = given("rows")

_FIND: Final = listed(
    calls.c.account_id, calls.c.normalized_id, calls.c.id, calls.c.epoch
).join_from(
    _keys,
    calls,
    and_(
        calls.c.account_id == field(_keys, 0, calls.c.account_id),
        calls.c.normalized_id == field(_keys, 1, calls.c.normalized_id),
    ),
)
_NOW: Final = bindparam("now", type_=Float())
_NEW: Final = (
    calls.c.account_id,
    calls.c.normalized_id,
    calls.c.reference_id,
    calls.c.label_set_id,
    calls.c.epoch,
)
_INSERT: Final = OrIgnore(calls).from_select(
    [
        *_NEW,
        calls.c.pushed,
        calls.c.first_watched,
        calls.c.state,
        calls.c.state_since,
    ],
    select(
        *(field(_rows, number, column) for number, column in enumerate(_NEW)),
        bindparam("pushed", type_=Boolean()),
        _NOW,
        literal(CallState.NEW.value),
        _NOW,
    )
    .select_from(_rows)
    # Without a condition, SQLite takes what follows for a part of the join.
    .where(true()),
    include_defaults=False,
)
# Not each time, because a query may name the same thousands of calls every minute. Locked in the
# order of their rows, as everywhere, so that exporters do not wait for each other in a circle.
_PUSHED: Final = (
    select(calls.c.id)
    .where(
        calls.c.id.in_(select(item(_rows, calls.c.id))),
        or_(
            calls.c.pushed.is_(False),
            and_(
                calls.c.finished_at < bindparam("lately"),
                or_(calls.c.named_at.is_(None), calls.c.named_at < bindparam("lately")),
            ),
        ),
    )
    .order_by(calls.c.id)
    .with_for_update(key_share=True)
)
_PUSH: Final = update(calls).where(calls.c.id.in_(_PUSHED)).values(pushed=True, named_at=_NOW)
_COUNT: Final = select(func.count()).where(calls.c.id.in_(select(item(_rows, calls.c.id))))
_DELETED: Final = listed(calls.c.id).where(
    calls.c.id.in_(select(item(_rows, calls.c.id))), calls.c.result == DELETED
)
_FORGET: Final = delete(calls).where(
    calls.c.id.in_(
        select(calls.c.id)
        .where(calls.c.id.in_(select(item(_rows, calls.c.id))))
        .order_by(calls.c.id)
        .with_for_update()
    )
)
_NAME: Final = OrIgnore(call_sources).from_select(
    ["source", "call_id"],
    select(bindparam("source", type_=call_sources.c.source.type), item(_rows, calls.c.id)).where(
        true()
    ),
)


def named_lately(memory: float) -> float:
    """Return for how many seconds it is not noted again that a finished call is still named.

    Args:
        memory: seconds for which a finished call is remembered. A query that names it at least
            twice in that time keeps it from being forgotten.
    """
    return min(_NAMED_LATELY, memory / 4)


def take(
    connection: Connection,
    source: str | None,
    new: Sequence[NewCall],
    now: float,
    room: Room,
    sharing: Sharing | None = None,
    lately: float = _NAMED_LATELY,
    limits: LabelLimits = NO_LIMITS,
) -> Taken:
    """Take calls in for a source; see `Store.watch`.

    Args:
        connection: in a transaction.
        source: who names them; None for calls that are pushed.
        new: the calls.
        now: Unix time.
        room: how many may be new, of accounts by their rows; those beyond are refused.
        sharing: this exporter, where several share the ledger.
        lately: see `named_lately`.
        limits: of the labels of each account.
    """
    ids = _account_rows(connection, new)
    wanted: dict[tuple[int, str], NewCall] = {}
    for call in new:
        wanted.setdefault((ids[call.account], reference_key(call.reference_id)), call)
    known = _find(connection, wanted)
    revived = _deleted(connection, known) if source is not None else {}
    known = {key: row for key, row in known.items() if key not in revived}
    missing = [(key, call) for key, call in wanted.items() if key not in known]
    missing, refused = _fitting(missing, room(connection, ids))
    _forget(connection, [revived[key] for key, _ in missing if key in revived])
    inserted = _insert(connection, missing, now, sharing, limits, pushed=source is None)
    rows = {*known.values(), *inserted.rows}
    if source is None:
        _push(connection, known.values(), now, lately, sharing)
    else:
        connection.execute(_NAME, {"source": source, "rows": packed(sorted(rows))})
    return Taken(inserted.mine, inserted.label_sets, rows, refused, inserted.series)


def push(
    connection: Connection,
    requests: Sequence[Sequence[NewCall]],
    now: float,
    room: Room,
    sharing: Sharing | None = None,
    lately: float = _NAMED_LATELY,
    limits: LabelLimits = NO_LIMITS,
) -> Pushed:
    """Take the calls of requests in; see `Store.push`.

    Args:
        connection: in a transaction.
        requests: the calls of each.
        now: Unix time.
        room: how many may be new, of accounts by their rows; requests that do not fit are
            refused.
        sharing: see `take`.
        lately: see `named_lately`.
        limits: of the labels of each account.
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
    left = room(connection, ids)
    counts: list[Count | str] = []
    for request in keyed:
        new: dict[tuple[int, str], NewCall] = {}
        for key, call in request:
            if key not in known and key not in missing:
                new.setdefault(key, call)
        wanted = Counter(call.account for call in new.values())
        if full := next((name for name, count in wanted.items() if count > left[name]), None):
            counts.append(full)
            continue
        for name, count in wanted.items():
            left[name] -= count
        missing |= new
        named.update(known[key] for key, _ in request if key in known)
        counts.append(Count(len(new), len(request) - len(new)))
    _forget(connection, [revived[key] for key in missing if key in revived])
    missed = list(missing.items())
    inserted = _insert(connection, missed, now, sharing, limits, pushed=True)
    _push(connection, named, now, lately, sharing)
    return Pushed(inserted.mine, inserted.label_sets, counts, inserted.series)


def _fitting(
    missing: Iterable[tuple[_Key, NewCall]], left: dict[str, float]
) -> tuple[list[tuple[_Key, NewCall]], Counter[str]]:
    """Return the first calls of each account that there is room for, and how many are beyond."""
    fitting, beyond = [], Counter[str]()
    for key, call in missing:
        if left[call.account] >= 1:
            left[call.account] -= 1
            fitting.append((key, call))
        else:
            beyond[call.account] += 1
    return fitting, beyond


def keep(connection: Connection, row: int, now: float, lately: float) -> bool:
    """Note that a call was handed over again; returns whether it is there."""
    connection.execute(_PUSH, {"rows": packed([row]), "now": now, "lately": now - lately})
    return connection.scalar(select(calls.c.id).where(calls.c.id == row)) is not None


def _push(
    connection: Connection,
    rows: Collection[int],
    now: float,
    lately: float,
    sharing: Sharing | None,
) -> None:
    """Note that calls that are known were handed over again.

    Raises:
        LedgerConflictError: another exporter has let go of one meanwhile.
    """
    if not rows:
        return
    which = {"rows": packed(rows)}
    connection.execute(_PUSH, {**which, "now": now, "lately": now - lately})
    # From here on nobody lets go of them.
    if sharing is not None and connection.scalar(_COUNT, which) != len(rows):
        raise LedgerConflictError("ledger: a call was let go while it was handed over again")


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


class _Inserted(NamedTuple):
    """Calls that were not known before.

    Attributes:
        mine: those that are to be polled here.
        label_sets: of those, by row.
        rows: of all of them: another exporter may have been faster with some.
        series: what changed to make room for their labels.
    """

    mine: list[StoredCall]
    label_sets: dict[int, Labels]
    rows: list[int]
    series: SeriesChanges


def _insert(
    connection: Connection,
    missing: Sequence[tuple[_Key, NewCall]],
    now: float,
    sharing: Sharing | None,
    limits: LabelLimits,
    *,
    pushed: bool,
) -> _Inserted:
    if not missing:
        return _Inserted([], {}, [], NO_SERIES_CHANGES)
    sets = {key: (call.account, canonical(call.labels)) for key, call in missing}
    wanted = {sets[key]: call.labels for key, call in missing}
    rows_of_accounts = {call.account: key[0] for key, call in missing}
    counted = count_labels(connection, rows_of_accounts, wanted, limits)
    if sharing is not None:
        notify_of_totals(connection, sharing.exporter, {name for name, _ in chain(*counted.series)})
        # In one order for every exporter, so that two do not wait for each other in a circle.
        missing = sorted(missing, key=itemgetter(0))
    epochs = dict(sharing.epochs) if sharing else {}
    rows = packed(
        (*key, call.reference_id, counted.sets[sets[key]][0], epochs.get(call.account, 0))
        for key, call in missing
    )
    parameters = {"rows": rows, "pushed": pushed, "now": now}
    keys = packed(key for key, _ in missing)
    found: dict[_Key, tuple[int, int]] = {}
    # Again where another exporter was faster, and has deleted what it had taken in since.
    while len(found) < len(missing):
        connection.execute(_INSERT, parameters)
        found = {
            (account, key): (row, epoch)
            for account, key, row, epoch in fetch(connection, _FIND, keys=keys)
        }
    mine = []
    for key, call in missing:
        row, epoch = found[key]
        # One that another exporter has inserted meanwhile, the holder of the lease claims.
        if epoch == epochs.get(call.account, 0):
            watched = WatchedCall(row, call.reference_id, now, CallState.NEW, now)
            mine.append(StoredCall(call.account, counted.sets[sets[key]][1], watched))
    return _Inserted(mine, counted.labels, [row for row, _ in found.values()], counted.series)


def _account_rows(connection: Connection, new: Iterable[NewCall]) -> dict[str, int]:
    """Return the rows of the accounts of calls, making those that there are not."""
    names = sorted({call.account for call in new})
    return {name: row_of(connection, accounts.c.name, name) for name in names}


def _find(connection: Connection, keys: Iterable[tuple[int, str]]) -> dict[tuple[int, str], int]:
    """Return the rows of the calls with these accounts and keys, where there are any."""
    rows = fetch(connection, _FIND, keys=packed(keys))
    return {(account, key): row for account, key, row, _ in rows}


def row_of(connection: Connection, column: Column[str], value: str) -> int:
    """Return the row that holds a value, making one where there is none."""
    table = column.table
    query = select(table.c.id).where(column == value)
    while (row := connection.scalar(query)) is None:
        connection.execute(OrIgnore(table).values({column: value}).inline())
    return int(row)
