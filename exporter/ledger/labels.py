"""Label sets: their rows, and which of them have totals of their own.

An account has totals for its most recently used label sets, within `LabelLimits`. To make room for
new label sets, others are evicted. From then on, their calls are counted with another label set:

- The least recently used values of a label become `other`.
- Label sets that differ only in labels that are no longer in `watch.labels` are merged.
- The least recently used label sets are replaced by the one in which every value is `other`.

The series of an evicted label set disappear; all other series stay. Its totals are deleted, not
added to another series, where Prometheus would count the calls a second time. They are moved only
if the same series shows them before and after.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from itertools import count, islice
from typing import Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Table,
    and_,
    bindparam,
    delete,
    exists,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from exporter.ledger.json_rows import (
    ROWS,
    fetch_json,
    field,
    insert_rows,
    is_given,
    item,
    select_json,
    to_json_rows,
)
from exporter.ledger.schema import (
    calls,
    counted_labels,
    folded_labels,
    label_sets,
    totals,
)
from exporter.ledger.totals import TotalKey, TotalKind
from exporter.ledger.types import BATCH_SIZE, Labels, SeriesChanges

OTHER: Final = "other"
"""The value that replaces evicted values of a label."""


class LabelLimits(NamedTuple):
    """The limits of the labels of an account."""

    names: tuple[str, ...] = ()  # `watch.labels`
    max_values: int = sys.maxsize  # of one label
    max_sets: int = sys.maxsize

    def shown(self, labels: Labels) -> Labels:
        """Return the labels that series show."""
        return {name: labels[name] for name in self.names if labels.get(name)}


NO_LIMITS: Final = LabelLimits()


def canonical(labels: Labels) -> str:
    """Return the canonical name of a label set: JSON with sorted keys."""
    return json.dumps(dict(sorted(labels.items())), separators=(",", ":"))


def fold(sets: dict[str, Labels], limits: LabelLimits) -> dict[str, Labels]:
    """Return the labels that each label set of an account is counted with. Pure.

    `sets` are label sets by canonical name, the least recently used first. Most are counted with
    their own labels. The one in which every value is `other` and the empty one do not count towards
    the limits.
    """
    kept = {}
    for label in limits.names:
        newest = dict.fromkeys(labels.get(label, "") for labels in reversed(sets.values()))
        room = islice((value for value in newest if value not in ("", OTHER)), limits.max_values)
        kept[label] = {"", OTHER, *room}
    counted: dict[str, Labels] = {
        name: {
            label: OTHER if label in kept and value not in kept[label] else value
            for label, value in labels.items()
        }
        for name, labels in sets.items()
    }
    overflow = dict.fromkeys(limits.names, OTHER)
    always = {canonical({}), canonical(overflow)}
    if len({*map(canonical, counted.values())} - always) > limits.max_sets:
        counted = {name: limits.shown(labels) for name, labels in counted.items()}
    newest = dict.fromkeys(map(canonical, reversed(counted.values())))
    room = islice((name for name in newest if name not in always), limits.max_sets)
    stay = {*always, *room}
    return {
        name: labels if canonical(labels) in stay else overflow for name, labels in counted.items()
    }


# The label set that a call is counted with.

FOLDED: Final = and_(
    folded_labels.c.label_set_id == calls.c.label_set_id,
    folded_labels.c.account_id == calls.c.account_id,
)
"""The condition of the outer join from calls to `folded_labels`."""

COUNTED_AS: Final = func.coalesce(folded_labels.c.into_id, calls.c.label_set_id)
"""The row of the label set whose totals a call is added to."""

_ACCOUNT: Final = bindparam("account", type_=Integer())


def _of_account(table: Table) -> ColumnElement[bool]:
    """Return a condition that selects the rows of an account and of the given label sets."""
    return and_(table.c.account_id == _ACCOUNT, is_given(table.c.label_set_id))


_INSERT_SETS: Final = insert_rows(label_sets.c.labels)
_FIND_SETS: Final = select_json(label_sets.c.labels, label_sets.c.id).where(
    is_given(label_sets.c.labels)
)
_COUNTED: Final = select(func.count()).where(_of_account(counted_labels))
_NEWEST: Final = (
    select(func.max(counted_labels.c.used))
    .where(counted_labels.c.account_id == _ACCOUNT)
    .scalar_subquery()
)
# Do not wait for another exporter that is updating `used` of the same label set.
_USED: Final = (
    select(counted_labels.c.label_set_id)
    .where(_of_account(counted_labels), counted_labels.c.used < _NEWEST)
    .with_for_update(skip_locked=True)
)
_USE: Final = (
    update(counted_labels)
    .where(counted_labels.c.account_id == _ACCOUNT, counted_labels.c.label_set_id.in_(_USED))
    .values(used=_NEWEST + 1)
)
_HELD: Final = (
    select(label_sets.c.id, label_sets.c.labels, counted_labels.c.used)
    .join_from(counted_labels, label_sets)
    .where(counted_labels.c.account_id == _ACCOUNT)
    .order_by(counted_labels.c.used, label_sets.c.id.desc())
)
_COUNT: Final = insert_rows(
    *counted_labels.c["account_id", "label_set_id", "used"], update=counted_labels.c.used
)
_UNCOUNT: Final = delete(counted_labels).where(_of_account(counted_labels))
_FOLD: Final = insert_rows(
    *folded_labels.c["account_id", "label_set_id", "into_id"], update=folded_labels.c.into_id
)
_FOLD_ON: Final = (
    update(folded_labels)
    .where(
        folded_labels.c.account_id == field(0, folded_labels.c.account_id),
        folded_labels.c.into_id == field(1, folded_labels.c.into_id),
    )
    .values(into_id=field(2, folded_labels.c.into_id))
)
_UNFOLD: Final = delete(folded_labels).where(_of_account(folded_labels))
_TOTALS: Final = select(totals.c.label_set_id, totals.c.total, totals.c.cell, totals.c.value).where(
    _of_account(totals)
)
_DELETE_TOTALS: Final = delete(totals).where(_of_account(totals))
_inserted: Final = insert(totals)
_ADD: Final = _inserted.on_conflict_do_update(
    index_elements=totals.primary_key,
    set_={"value": totals.c.value + _inserted.excluded.value},
)

# Each is the first column of an index.
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
    """Where calls with given label sets are counted."""

    # By account and canonical name: the row of the label set, and the row of the one that its calls
    # are counted with.
    sets: dict[tuple[str, str], tuple[int, int]]
    labels: dict[int, Labels]  # of the latter, by row
    series: SeriesChanges


def count_labels(
    connection: Connection,
    accounts: Mapping[str, int],
    wanted: Mapping[tuple[str, str], Labels],
    limits: LabelLimits,
) -> Counted:
    """Start totals for the label sets of new calls, evicting others beyond the limits.

    `accounts` are the rows of the accounts; `wanted` are the labels of the calls, by account and
    canonical name; `limits` apply to each account. If `wanted` is empty, only apply the limits, for
    instance after they were lowered.
    """
    rows = _set_rows(connection, {name for _, name in wanted})
    used: dict[str, dict[str, Labels]] = {account: {} for account in accounts}
    for (account, name), labels in wanted.items():
        used[account][name] = labels
    counted = Counted({}, {}, SeriesChanges([], []))
    # Lock in a fixed order to avoid deadlocks between exporters.
    for account, sets in sorted(used.items()):
        given = {"account": accounts[account], "rows": to_json_rows(rows[name] for name in sets)}
        if not sets or connection.scalars(_COUNTED, given).one() < len(sets):
            _start_totals(connection, account, accounts[account], sets, limits, counted)
            continue
        connection.execute(_USE, given)
        for name, labels in sets.items():
            counted.sets[account, name] = rows[name], rows[name]
            counted.labels[rows[name]] = labels
    return counted


def _start_totals(
    connection: Connection,
    account: str,
    account_row: int,
    used: Mapping[str, Labels],
    limits: LabelLimits,
    counted: Counted,
) -> None:
    """Start the totals of used label sets that have none, and evict others beyond the limits."""
    keep_labels(connection, [account], lock="")
    held = connection.execute(_HELD, {"account": account_row}).all()
    rows = {name: row for row, name, _ in held}
    sets = {name: json.loads(name) for name in rows}
    for name, labels in used.items():
        sets.pop(name, None)
        sets[name] = labels
    folded = fold(sets, limits)
    into = {name: canonical(labels) for name, labels in folded.items()}
    started = {*into.values()} - rows.keys()
    rows |= _set_rows(connection, {*used, *started} - rows.keys())
    for name, labels in folded.items():
        if name in used:
            counted.sets[account, name] = rows[name], rows[into[name]]
        if name in used or into[name] in started:
            counted.labels[rows[into[name]]] = labels
    counted.series.started.extend((account, rows[name]) for name in started)
    if evicted := [name for name in sets if into[name] != name]:
        counted.series.evicted.extend((account, rows[name]) for name in evicted)
        moving = {
            rows[name]: (rows[into[name]], limits.shown(sets[name]) == limits.shown(folded[name]))
            for name in evicted
        }
        _evict(connection, account, account_row, moving)
    now_used = {*started, *(into[name] for name in used)}
    numbers = count(held[-1].used + 1 if held else 1)
    numbered = [
        (account_row, rows[name], next(numbers))
        for name in reversed(dict.fromkeys(into[name] for name in reversed(sets)))
        if name in now_used
    ]
    connection.execute(_COUNT, {"rows": to_json_rows(numbered)})
    unfolded = to_json_rows(rows[name] for name in started)
    connection.execute(_UNFOLD, {"account": account_row, "rows": unfolded})


def _evict(
    connection: Connection, account: str, row: int, evicted: Mapping[int, tuple[int, bool]]
) -> None:
    """Delete the totals of label sets, or move them if their series stay the same.

    `evicted` has, by the row of a label set, the row of the one that replaces it, and whether both
    have the same series.
    """
    given = {"account": row, "rows": to_json_rows(evicted)}
    moved = defaultdict[TotalKey, float](float)
    for set_row, total, cell, value in connection.execute(_TOTALS, given):
        into, keeps_series = evicted[set_row]
        # The series of delays have only the label `account`.
        if keeps_series or total in (TotalKind.DELAY, TotalKind.MESSAGE_DELAY):
            moved[TotalKey(account, into, TotalKind(total), cell)] += value
    connection.execute(_DELETE_TOTALS, given)
    connection.execute(_UNCOUNT, given)
    if moved:
        add_totals(connection, moved, {account: row})
    folded = to_json_rows((row, set_row, into) for set_row, (into, _) in evicted.items())
    connection.execute(_FOLD_ON, {"rows": folded})
    connection.execute(_FOLD, {"rows": folded})


def add_totals(
    connection: Connection, added: Mapping[TotalKey, float], accounts: Mapping[str, int]
) -> None:
    """Add increments to totals, in a transaction that has called `keep_labels` for the accounts.

    `accounts` are the rows of the accounts.
    """
    # Write in a fixed order to avoid deadlocks between exporters.
    rows = [
        (accounts[account], labels, total.value, cell, amount)
        for (account, labels, total, cell), amount in sorted(added.items())
    ]
    connection.execute(_ADD, [dict(zip(totals.c.keys(), row, strict=True)) for row in rows])


def keep_labels(connection: Connection, accounts: Iterable[str], lock: str = "_shared") -> None:
    """Prevent other exporters from evicting label sets of accounts until the transaction ends.

    Transactions that add to the totals of an account share a lock; evictions take it exclusively.
    """
    names = sorted(set(accounts))
    # An SQLite ledger runs one transaction at a time.
    if names and connection.dialect.name == "postgresql":
        lock_name = getattr(func, f"pg_advisory_xact_lock{lock}")
        locked = lock_name(1699958100, func.hashtext(item(label_sets.c.labels)))
        connection.execute(select(locked).select_from(ROWS), {"rows": to_json_rows(names)})


def prune_labels(connection: Connection) -> int:
    """Delete up to `BATCH_SIZE` label sets without calls and totals; return how many."""
    connection.execute(_PRUNE_FOLDED)
    return connection.execute(_PRUNE).rowcount


def _set_rows(connection: Connection, names: Collection[str]) -> dict[str, int]:
    """Return the rows of label sets by canonical name, inserting missing ones."""
    # In a fixed order, as above.
    given = {"rows": to_json_rows(sorted(names))}
    found = dict[str, int](fetch_json(connection, _FIND_SETS, **given)) if names else {}
    if len(found) < len(names):
        connection.execute(_INSERT_SETS, given)
        found = dict[str, int](fetch_json(connection, _FIND_SETS, **given))
    return found
