"""What an exporter keeps between statements, and commits. Blocking: `Ledger` calls it."""

from __future__ import annotations

import math
import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    and_,
    bindparam,
    func,
    or_,
    select,
    true,
    update,
)

from exporter.calls import CallState, Finished, Key, PollAgain, Result, Status, WatchedCall
from exporter.ledger.calls import (
    OpenCalls,
    Sharing,
    calls_not_in,
    delete_call,
    insert_calls,
    keep_call,
    label_sets_of,
    named_lately,
    remove_source,
)
from exporter.ledger.clock import LedgerClock
from exporter.ledger.engine import Database
from exporter.ledger.json_rows import fetch_json, field, is_given, select_json, to_json_rows
from exporter.ledger.labels import (
    COUNTED_AS,
    FOLDED,
    NO_LIMITS,
    LabelLimits,
    add_totals,
    keep_labels,
    limit_labels,
)
from exporter.ledger.leases import FORGET, notify_holders, notify_of_totals
from exporter.ledger.outbox import CallFinished, Outbox
from exporter.ledger.schema import (
    UNFINISHED_ROW,
    accounts,
    calls,
    counted_labels,
    folded_labels,
    totals,
)
from exporter.ledger.totals import TotalKey, TotalKind, additions, price_added
from exporter.ledger.types import (
    BATCH_SIZE,
    DELETED,
    Committed,
    InsertResult,
    NewCall,
    Observation,
    Snapshot,
    StoredCall,
)

LOADED: Final = 5 * BATCH_SIZE
"""Calls that are read at a time when all are: each time, the ledger's thread and the event loop
have to wait for each other."""

# Times that are remembered while all calls are read: of a day and more.
_SECONDS: Final = 100_000

_UNFINISHED_PAGE: Final = (
    select(
        calls.c.id,
        calls.c.reference_id,
        calls.c.first_watched,
        calls.c.state,
        calls.c.state_since,
        COUNTED_AS.label("counted_as"),
    )
    .join_from(calls, accounts)
    .outerjoin(folded_labels, FOLDED)
    .where(
        accounts.c.name == bindparam("account"),
        calls.c.result.is_(None),
        calls.c.id > bindparam("after"),
        calls.c.canary_run_id.is_(None),  # see `exporter.canaries`
    )
    .order_by(calls.c.id)
    .limit(LOADED)
    .subquery()
)
_UNFINISHED: Final = select_json(*_UNFINISHED_PAGE.c)

_BEGUN: Final = select(accounts.c.name, counted_labels.c.label_set_id).join_from(
    counted_labels, accounts
)


class Store:
    """An exporter on an open database: its limits, its open calls, and its share of the ledger.

    Blocking; each method is one transaction, or a few short ones. What needs none of this state is
    a function of a connection, for `Database.run`.

    Attributes:
        exporter: the id of this process among those that share the ledger; None for one alone.
        limits: of the labels of each account.
        open_calls: how many calls of each account are open.
    """

    def __init__(
        self,
        database: Database,
        clock: LedgerClock | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        self.database = database
        self._clock = clock or LedgerClock()
        self.outbox = outbox or Outbox(self._clock)
        self._epochs: dict[str, int] = {}
        self.exporter = uuid.uuid4().hex if database.shared else None
        self.open_calls = OpenCalls(database)
        self.limits, self._retention = NO_LIMITS, math.inf
        self._seconds: dict[float, float] = {}

    def configure(self, limits: LabelLimits = NO_LIMITS, retention: float = math.inf) -> None:
        """Change the limits of labels, and for how many seconds a finished call is remembered."""
        self.limits, self._retention = limits, retention

    def set_epoch(self, account: str, epoch: int | None) -> None:
        """Have calls that are added to an account polled here, under a lease; None to stop."""
        if epoch is None:
            self._epochs.pop(account, None)
        else:
            self._epochs[account] = epoch

    def snapshot(self, names: Collection[str] | None = None) -> Snapshot:
        """Return all that the metrics of finished calls are made of, within the limits."""
        return self.database.run(_snapshot, names, self.limits)

    def unfinished(self, account: str, after: int = 0) -> list[StoredCall]:
        """Return the first `LOADED` of an account's calls that are to be polled, after a row."""
        which = {"account": account, "after": after}
        with self.database.begin() as connection:
            rows = fetch_json(connection, _UNFINISHED, **which)
        # Calls that were added together share their time, and so do those whose state began in
        # the same second, wherever they stand: a tenth of what a call takes.
        times: dict[float, float] = {}
        if len(rows) < LOADED or len(self._seconds) > _SECONDS:
            self._seconds = {}
        return [
            StoredCall(
                account,
                labels,
                WatchedCall(
                    row,
                    text,
                    times.setdefault(watched, watched),
                    CallState(state),
                    self._seconds.setdefault(since, times.setdefault(since, since)),
                ),
            )
            for row, text, watched, state, since, labels in sorted(rows)
        ]

    def watch(
        self,
        source: str | None,
        new: Sequence[NewCall],
        now: float,
        max_calls: float = math.inf,
    ) -> InsertResult:
        """Add up to `BATCH_SIZE` calls; known ones stay as they are.

        Args:
            source: the configuration or file that names them; None for calls that are pushed.
            new: the calls; of duplicates, the first counts.
            now: Unix time.
            max_calls: how many of an account may be unfinished at a time; those beyond are
                refused.
        """
        return self._insert([new], now, max_calls, source=source)

    def push(
        self, requests: Sequence[Sequence[NewCall]], now: float, max_calls: float = math.inf
    ) -> InsertResult:
        """Add some `BATCH_SIZE` calls of requests, each request as a whole or not at all."""
        return self._insert(requests, now, max_calls, whole=True)

    def _insert(
        self,
        requests: Sequence[Sequence[NewCall]],
        now: float,
        max_calls: float,
        *,
        source: str | None = None,
        whole: bool = False,
    ) -> InsertResult:
        result = self.database.run(
            insert_calls,
            requests,
            now,
            partial(self.open_calls.room, limit=max_calls),
            source=source,
            whole=whole,
            sharing=Sharing(self.exporter, self._epochs) if self.exporter else None,
            lately=named_lately(self._retention),
            limits=self.limits,
        )
        self.open_calls.add(result.added)
        return result

    def delete(self, row: int, now: float) -> bool:
        """Delete an open call, whatever names it; return whether there was one.

        It is remembered as deleted, for as long as a finished one is: a query that still returns
        it, or a late callback, does not add it again. To push it again does, and so does a file
        that names it.
        """
        deleted = self.database.run(delete_call, row, now, self.exporter)
        self.open_calls.remove(deleted)
        return bool(deleted)

    def keep_only(self, source: str, rows: set[int]) -> list[int]:
        """Note that `source` names no calls but `rows` any more.

        Finished ones are remembered from now on, however old they are: the source may name them
        again, as a file does that was away for a moment.

        Returns:
            The open calls that nothing names any more: they are deleted, and not counted.
        """
        unnamed = self.database.run(calls_not_in, source, rows)
        removed, now = list[int](), self._clock.now()
        for start in range(0, len(unnamed), BATCH_SIZE):
            batch = unnamed[start : start + BATCH_SIZE]
            deleted = self.database.run(remove_source, source, batch, self.exporter, now)
            self.open_calls.remove(Counter(deleted.values()))
            removed += deleted
        return removed

    def commit(self, observations: Sequence[Observation]) -> Committed:
        """Write what polls found out."""
        committed = self.database.run(
            commit, observations, self.outbox, self._clock.ahead, self.exporter
        )
        self.open_calls.remove(committed.by_account)
        return committed

    def keep(self, row: int) -> bool:
        """Keep a call whatever files say; return whether it exists.

        A finished one is remembered from now on. Nothing is written where it was kept lately.
        """
        return self.database.run(keep_call, row, self._clock.now(), named_lately(self._retention))

    def set_price(self, row: int, price: float) -> dict[TotalKey, float]:
        """Write what a call has cost; see `set_price`."""
        return self.database.run(set_price, row, price, self.exporter)


def _snapshot(
    connection: Connection, names: Collection[str] | None, limits: LabelLimits
) -> Snapshot:
    wanted = true() if names is None else accounts.c.name.in_(list(names))
    known = select(accounts.c.name, accounts.c.id).where(wanted).order_by(accounts.c.name)
    # This waits for transactions that change totals of these accounts.
    for name, row in connection.execute(known).all():
        limit_labels(connection, name, row, limits)
    # Row by row: SQLite would round the values in a text, and a counter would go backwards.
    query = select(
        accounts.c.name,
        totals.c.label_set_id,
        totals.c.total,
        totals.c.cell,
        totals.c.value,
    ).join(accounts)
    found = {
        TotalKey(name, labels, TotalKind(total), cell): value
        for name, labels, total, cell, value in connection.execute(query.where(wanted))
    }
    begun = {(name, labels) for name, labels in connection.execute(_BEGUN.where(wanted))}
    rows = {row for _, row in begun}.union(cell.labels for cell in found)
    return Snapshot(label_sets_of(connection, rows), found, begun)


# Commits: what polls found out, in one transaction with what it adds to the totals.


# As plain texts: packing asks each member of an enumeration for its value, which is done in Python.
_TEXT: Final = {
    member: member.value for kind in (CallState, Result, Status, Key) for member in kind
}

# Locked, so that of two exporters that finish a call at the same time one finds it finished; in
# the order of their rows, so that they do not wait for each other in a circle. Not against those
# who only name it.
_HELD: Final = (
    select(
        calls.c.id,
        COUNTED_AS.label("counted_as"),
        calls.c.label_set_id,
        calls.c.price,
        calls.c.canary_run_id,
        accounts.c.id.label("account_id"),
        accounts.c.name,
    )
    .join_from(calls, accounts)
    .outerjoin(folded_labels, FOLDED)
    .where(is_given(calls.c.id), UNFINISHED_ROW)
    .order_by(calls.c.id)
    .with_for_update(of=calls, key_share=True)
    .subquery()
)
_ACCOUNT_OF: Final = select(accounts.c.id, accounts.c.name).join_from(calls, accounts)
_SET_OF: Final = select(COUNTED_AS).select_from(calls).outerjoin(folded_labels, FOLDED)
_OPEN_ROWS: Final = select_json(*_HELD.c)


def _row_is_given() -> ColumnElement[bool]:
    return and_(calls.c.id == field(0, calls.c.id), UNFINISHED_ROW)


def _given(*columns: Column[Any]) -> dict[str, ColumnElement[Any]]:  # Any: of a column's type
    """Return new values for columns: the fields after the row's number, in this order."""
    return {column.name: field(n, column) for n, column in enumerate(columns, 1)}


_SET_STATE: Final = (
    update(calls).where(_row_is_given()).values(_given(calls.c.state, calls.c.state_since))
)
_FINISH: Final = (
    update(calls)
    .where(_row_is_given())
    .values(
        _given(calls.c.result, calls.c.status, calls.c.duration, calls.c.key, calls.c.finished_at)
    )
)


def commit(
    connection: Connection,
    observations: Sequence[Observation],
    outbox: Outbox | None = None,
    ahead: float = 0.0,
    exporter: str | None = None,
) -> Committed:
    """Write a group of observations, of distinct calls, and the notifications of those that finish.

    A call finishes once: one that has a result already, or is gone, adds nothing.

    Args:
        connection: in a transaction.
        observations: the group.
        outbox: takes the notifications.
        ahead: seconds by which the ledger's clock is ahead of the machine's, which notifications
            go by.
        exporter: the id of this process, where exporters share the ledger: those that hold the
            leases of the accounts are told of what finishes.
    """
    ids = [observation.call.id for observation in observations]
    keep_labels(connection, {o.account for o in observations if isinstance(o.verdict, Finished)})
    held = {row: rest for row, *rest in fetch_json(connection, _OPEN_ROWS, rows=to_json_rows(ids))}
    known = [observation for observation in observations if observation.call.id in held]
    states = [
        (call.id, _TEXT[found.state], at)
        for _, call, found, at in known
        if isinstance(found, PollAgain)
    ]
    finished, events, canaries = list[tuple[Any, ...]](), [], set[int]()
    added: defaultdict[TotalKey, float] = defaultdict(float)
    account_ids: dict[str, int] = {}
    for _, call, found, at in known:
        if isinstance(found, PollAgain):
            continue
        key = None if found.key is None else _TEXT[found.key]
        ending = _TEXT[found.result], _TEXT[found.status], found.duration, key
        finished.append((call.id, *ending, at))
        counted_as, labels, price, canary, account_id, account = held[call.id]
        if canary is not None:
            canaries.add(call.id)
            continue
        times = call.first_watched - ahead, at - ahead
        events.append((labels, CallFinished(account, call.reference_id, *ending, {}, *times)))
        account_ids[account] = account_id
        for cell, amount in additions(account, counted_as, found, at - call.first_watched, price):
            added[cell] += amount
    if states:
        connection.execute(_SET_STATE, {"rows": to_json_rows(states)})
    if finished:
        connection.execute(_FINISH, {"rows": to_json_rows(finished)})
    if added:
        add_totals(connection, added, account_ids)
        notify_of_totals(connection, exporter, account_ids)
    if finished:
        notify_holders(connection, exporter, [row for row, *_ in finished], FORGET)
    notify = frozenset[str]()
    if outbox and outbox.routes and events:
        notify = outbox.add(connection, events)
    by_account = Counter(event.account for _, event in events)
    gone = frozenset(ids) - held.keys()
    return Committed(dict(added), gone, by_account, notify, frozenset(canaries))


def set_price(
    connection: Connection, row: int, price: float, exporter: str | None = None
) -> dict[TotalKey, float]:
    """Write what a call has cost, in VND.

    Until the call has finished, the last price is the best one known, and its finish will add it.
    Of a call that has finished, the first price above 0 stays: it has been added.

    Returns:
        What it adds to the totals.
    """
    account = connection.execute(_ACCOUNT_OF.where(calls.c.id == row)).first()
    if account is None:
        return {}
    keep_labels(connection, [account.name])
    none_added = and_(calls.c.result != DELETED, func.coalesce(calls.c.price, 0) == 0)
    open_still = or_(calls.c.result.is_(None), none_added)
    known = update(calls).where(calls.c.id == row, open_still).values(price=price)
    found = connection.execute(known.returning(calls.c.result, calls.c.canary_run_id)).first()
    if found is None or found.result is None or found.canary_run_id is not None:
        return {}
    counted_as = connection.scalars(_SET_OF.where(calls.c.id == row)).one()
    cell, amount = price_added(account.name, counted_as, price)
    add_totals(connection, {cell: amount}, {account.name: account.id})
    notify_of_totals(connection, exporter, [account.name])
    return {cell: amount}
