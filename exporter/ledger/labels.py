"""Sets of labels: their rows, and which of them have totals of their own.

The totals of a finished call are added to those of its set of labels, or of the set as which it is
counted since that was evicted; see `exporter.ledger.label_limits`. The totals of an evicted set are
deleted: Prometheus has counted its calls, and would count them again in another series. Only what
the same series shows before and after is moved.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Insert,
    Integer,
    Table,
    Update,
    and_,
    bindparam,
    delete,
    exists,
    func,
    select,
    text,
    true,
    tuple_,
    update,
)

from exporter.ledger.json_rows import (
    OrIgnore,
    fetch_json,
    field,
    item,
    json_param,
    select_json,
    to_json_rows,
)
from exporter.ledger.label_limits import CountedSets, LabelLimits, canonical
from exporter.ledger.schema import (
    calls,
    counted_labels,
    folded_labels,
    label_sets,
    totals,
)
from exporter.ledger.totals import TotalKey, TotalKind
from exporter.ledger.types import BATCH_SIZE, Labels, SeriesChanges

_rows: Final = json_param("rows")
_account: Final = bindparam("account", type_=Integer())
_here: Final = item(_rows, label_sets.c.id)

FOLDED: Final = and_(
    folded_labels.c.label_set_id == calls.c.label_set_id,
    folded_labels.c.account_id == calls.c.account_id,
)
"""Joins `folded_labels` to calls, as an outer join."""

COUNTED_AS: Final = func.coalesce(folded_labels.c.into_id, calls.c.label_set_id)
"""The set whose totals a call is added to."""

_INSERT_SETS: Final = OrIgnore(label_sets).from_select(
    ["labels"], select(item(_rows, label_sets.c.labels)).where(true()), include_defaults=False
)
_FIND_SETS: Final = select_json(label_sets.c.labels, label_sets.c.id).where(
    label_sets.c.labels.in_(select(item(_rows, label_sets.c.labels)))
)


def _is_given(table: Table) -> ColumnElement[bool]:
    """Say of rows that their account and their set are given."""
    return and_(
        table.c.account_id == field(_rows, 0, table.c.account_id),
        table.c.label_set_id == field(_rows, 1, table.c.label_set_id),
    )


_COUNTED: Final = select_json(counted_labels.c.account_id, counted_labels.c.label_set_id).join_from(
    _rows, counted_labels, _is_given(counted_labels)
)
_others = counted_labels.alias()
_NEWEST: Final = (
    select(func.max(_others.c.used))
    .where(_others.c.account_id == counted_labels.c.account_id)
    .correlate(counted_labels)
    .scalar_subquery()
)
# A set that another exporter is noting the use of, at this moment, is not waited for.
_USED: Final = (
    select(counted_labels.c.label_set_id, counted_labels.c.account_id)
    .join_from(_rows, counted_labels, _is_given(counted_labels))
    .where(counted_labels.c.used < _NEWEST)
    .with_for_update(of=counted_labels, skip_locked=True)
)
_USE: Final = (
    update(counted_labels)
    .where(tuple_(counted_labels.c.label_set_id, counted_labels.c.account_id).in_(_USED))
    .values(used=_NEWEST + 1)
)
_HELD: Final = (
    select(label_sets.c.id, label_sets.c.labels, counted_labels.c.used)
    .join_from(counted_labels, label_sets)
    .where(counted_labels.c.account_id == _account)
    .order_by(counted_labels.c.used, label_sets.c.id.desc())
)


# Any, below: whatever the column holds.


def _insert_given(table: Table, column: Column[Any]) -> Insert:
    """Return what adds rows of an account, given as sets of labels and values of a column."""
    return OrIgnore(table).from_select(
        ["label_set_id", "account_id", column.name],
        select(field(_rows, 0, table.c.label_set_id), _account, field(_rows, 1, column))
        .select_from(_rows)
        .where(true()),
        include_defaults=False,
    )


def _update_given(table: Table, key: Column[Any], column: Column[Any]) -> Update:
    """Return what changes a column of an account's rows, given as keys and new values."""
    return (
        update(table)
        .where(table.c.account_id == _account, key == field(_rows, 0, key))
        .values({column.name: field(_rows, 1, column)})
    )


_BEGIN: Final = _insert_given(counted_labels, counted_labels.c.used)
_NUMBER: Final = _update_given(counted_labels, counted_labels.c.label_set_id, counted_labels.c.used)
_FOLD: Final = _insert_given(folded_labels, folded_labels.c.into_id)
_FOLD_ON: Final = _update_given(folded_labels, folded_labels.c.into_id, folded_labels.c.into_id)


def _of_account(table: Table) -> tuple[ColumnElement[bool], ...]:
    return table.c.account_id == _account, table.c.label_set_id.in_(select(_here))


_UNFOLD: Final = delete(folded_labels).where(*_of_account(folded_labels))
_UNCOUNT: Final = delete(counted_labels).where(*_of_account(counted_labels))
_TOTALS: Final = select(totals.c.label_set_id, totals.c.total, totals.c.cell, totals.c.value).where(
    *_of_account(totals)
)
_DELETE_TOTALS: Final = delete(totals).where(*_of_account(totals))

# Every engine writes it like this, and SQLAlchemy has a way of its own for each.
_ADD: Final = text(
    "INSERT INTO totals (account_id, label_set_id, total, cell, value) "
    "VALUES (:account_id, :label_set_id, :total, :cell, :value) "
    "ON CONFLICT (account_id, label_set_id, total, cell) "
    "DO UPDATE SET value = totals.value + excluded.value"
)

# Whoever adds to an account's totals keeps others from evicting them meanwhile.
_LOCK: Final = """
    SELECT pg_advisory_xact_lock{kind}(1699958100, hashtext(value))
    FROM json_array_elements_text(CAST(:names AS json))
"""
_SHARE: Final = text(_LOCK.format(kind="_shared"))
_EXCLUDE: Final = text(_LOCK.format(kind=""))

# As the first of the columns of an index, each.
_REFERENCES: Final = (
    calls.c.label_set_id,
    totals.c.label_set_id,
    counted_labels.c.label_set_id,
    folded_labels.c.label_set_id,
    folded_labels.c.into_id,
)
_UNUSED: Final = (
    select(label_sets.c.id)
    .where(*(~exists().where(column == label_sets.c.id) for column in _REFERENCES))
    .limit(BATCH_SIZE)
)
_PRUNE: Final = delete(label_sets).where(label_sets.c.id.in_(_UNUSED))
_PRUNE_FOLDED: Final = delete(folded_labels).where(~exists().where(FOLDED))


class Counted(NamedTuple):
    """Where calls with sets of labels are counted.

    Attributes:
        sets: by account and canonical name: the row of the set, and that of the one whose totals
            its calls are added to.
        labels: the labels of the latter.
        series: what changed to make room for them.
    """

    sets: dict[tuple[str, str], tuple[int, int]]
    labels: dict[int, Labels]
    series: SeriesChanges


def count_labels(
    connection: Connection,
    accounts: Mapping[str, int],
    wanted: Mapping[tuple[str, str], Labels],
    limits: LabelLimits,
) -> Counted:
    """Make room for the sets of labels of new calls.

    Args:
        connection: in a transaction.
        accounts: the rows of the accounts.
        wanted: the labels of the calls, by account and canonical name.
        limits: of each account.
    """
    rows = _set_rows(connection, {name for _, name in wanted})
    pairs = to_json_rows((accounts[account], rows[name]) for account, name in wanted)
    counted = {(account, row) for account, row in fetch_json(connection, _COUNTED, rows=pairs)}
    found = Counted({}, {}, SeriesChanges([], []))
    used, new = defaultdict[str, list[Labels]](list), set[str]()
    for (account, name), labels in wanted.items():
        used[account].append(labels)
        if (accounts[account], rows[name]) not in counted:
            new.add(account)
    _lock(connection, _EXCLUDE, new)
    for account in sorted(new):
        _begin(connection, account, accounts[account], used[account], limits, found)
    # Last: others may be evicting what is locked by this.
    known = {key: labels for key, labels in wanted.items() if key[0] not in new}
    for (account, name), labels in known.items():
        found.sets[account, name] = rows[name], rows[name]
        found.labels[rows[name]] = labels
    if known:
        pairs = to_json_rows((accounts[account], rows[name]) for account, name in known)
        connection.execute(_USE, {"rows": pairs})
    return found


def limit_labels(connection: Connection, account: str, row: int, limits: LabelLimits) -> None:
    """Evict what an account has beyond its limits, as where they were lowered.

    Args:
        connection: in a transaction.
        account: its name.
        row: its row.
        limits: the limits.
    """
    _lock(connection, _EXCLUDE, [account])
    _begin(connection, account, row, [], limits, Counted({}, {}, SeriesChanges([], [])))


def _begin(
    connection: Connection,
    account: str,
    account_row: int,
    used: Sequence[Labels],
    limits: LabelLimits,
    found: Counted,
) -> None:
    """Begin the totals of the new ones of used sets, and evict those that make room for them."""
    this = {"account": account_row}
    sets, held, newest = CountedSets(limits), dict[str, int](), 0  # the newest is read last
    for row, labels, last in connection.execute(_HELD, this):
        sets.use(json.loads(labels), labels)
        held[labels], newest = row, last
    for set_ in used:
        sets.use(set_)
    begun = [name for name in sets.counted if name not in held]
    wanted = {canonical(labels) for labels in used}
    rows = held | _set_rows(connection, wanted.union(begun) - held.keys())
    # What others were to be counted as, and was then evicted itself, never came to be.
    evicted = {
        rows[name]: (rows[sets.counted_as(name)], sets.keeps_series(name))
        for name in sets.folded
        if name in held or name in wanted
    }
    for name in wanted.union(begun):
        counted_as = sets.counted_as(name)
        found.sets[account, name] = rows[name], rows[counted_as]
        found.labels[rows[counted_as]] = sets.known[counted_as]
    found.series.begun.extend((account, rows[name]) for name in begun)
    found.series.evicted.extend((account, row) for row in evicted)
    if evicted:
        _evict(connection, account, account_row, evicted)
    new = wanted.union(begun)
    newer = (rows[name] for name in sets.counted if name in new)
    numbered = {"rows": to_json_rows((row, n) for n, row in enumerate(newer, newest + 1)), **this}
    connection.execute(_UNFOLD, {"rows": to_json_rows(rows[name] for name in begun), **this})
    connection.execute(_BEGIN, numbered)
    connection.execute(_NUMBER, numbered)


def _evict(
    connection: Connection, account: str, row: int, evicted: Mapping[int, tuple[int, bool]]
) -> None:
    """Delete the totals of sets; their calls count as other ones, by row and `keeps_series`."""
    which = {"rows": to_json_rows(evicted), "account": row}
    moved: defaultdict[TotalKey, float] = defaultdict(float)
    for set_row, total, cell, value in connection.execute(_TOTALS, which):
        into, keeps_series = evicted[set_row]
        if keeps_series or total == TotalKind.DELAY:  # whose series have no labels but the account
            moved[TotalKey(account, into, TotalKind(total), cell)] += value
    for statement in (_DELETE_TOTALS, _UNCOUNT, _UNFOLD):
        connection.execute(statement, which)
    if moved:
        add_totals(connection, moved, {account: row})
    counted_as = {
        "rows": to_json_rows((row, into) for row, (into, _) in evicted.items()),
        "account": row,
    }
    connection.execute(_FOLD_ON, counted_as)
    connection.execute(_FOLD, counted_as)


def add_totals(
    connection: Connection, added: Mapping[TotalKey, float], accounts: Mapping[str, int]
) -> None:
    """Add to totals.

    Args:
        connection: in a transaction that has called `keep_labels` for the accounts.
        added: how much.
        accounts: the rows of the accounts.
    """
    connection.execute(
        _ADD,
        # In one order for every exporter, so that two do not wait for each other in a circle.
        [
            {
                "account_id": accounts[cell.account],
                "label_set_id": cell.labels,
                "total": cell.total.value,
                "cell": cell.cell,
                "value": amount,
            }
            for cell, amount in sorted(added.items())
        ],
    )


def keep_labels(connection: Connection, accounts: Iterable[str]) -> None:
    """Keep other exporters from evicting sets of labels of accounts until the transaction ends."""
    _lock(connection, _SHARE, accounts)


def _lock(connection: Connection, how: Any, accounts: Iterable[str]) -> None:
    names = sorted(set(accounts))
    # A ledger in a file has one user, and one transaction at a time.
    if names and connection.dialect.name == "postgresql":
        connection.execute(how, {"names": to_json_rows(names)})


def prune_labels(connection: Connection) -> int:
    """Delete up to `BATCH_SIZE` sets of labels that no call and no total uses; return how many."""
    connection.execute(_PRUNE_FOLDED)
    return connection.execute(_PRUNE).rowcount


def _set_rows(connection: Connection, names: Collection[str]) -> dict[str, int]:
    """Return the rows of sets of labels by their canonical names, making those that are missing."""
    # In one order for every exporter, as above.
    rows = {"rows": to_json_rows(sorted(names))}
    found = dict(fetch_json(connection, _FIND_SETS, **rows)) if names else {}
    if len(found) < len(names):
        connection.execute(_INSERT_SETS, rows)
        found = dict(fetch_json(connection, _FIND_SETS, **rows))
    return found
