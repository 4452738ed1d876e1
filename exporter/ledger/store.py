"""The blocking interface to the ledger, run in a thread by `exporter.ledger.ledger.Ledger`."""

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
    naming_interval,
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
"""Page size for reading all open calls: each page costs a switch between the ledger's thread and
the event loop."""

# Distinct times to cache while all calls are read: more than the seconds of a day.
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
    """An open database with the exporter's state: limits, open calls, and epochs of leases.

    Each method is one transaction, or a few short ones. Operations that do not need this state are
    functions of a connection, to run with `Database.run`.

    Attributes:
        exporter: the id of this process; None if the ledger is not shared.
        limits: limits of the labels of each account.
        open_calls: the number of open calls, by account.
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
        """Change the limits of labels, and the retention of finished calls, in seconds."""
        self.limits, self._retention = limits, retention

    def set_epoch(self, account: str, epoch: int | None) -> None:
        """Set the epoch of the held lease on an account; None once the lease is lost."""
        if epoch is None:
            self._epochs.pop(account, None)
        else:
            self._epochs[account] = epoch

    def snapshot(self, names: Collection[str] | None = None) -> Snapshot:
        """Return the data behind the metrics of finished calls, after applying the limits."""
        return self.database.run(_snapshot, names, self.limits)

    def unfinished(self, account: str, after: int = 0) -> list[StoredCall]:
        """Return the first `LOADED` open calls of an account after a row."""
        which = {"account": account, "after": after}
        with self.database.begin() as connection:
            rows = fetch_json(connection, _UNFINISHED, **which)
        # Share equal `float`s between calls: many calls have the same times, and this saves a
        # tenth of their memory.
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
        """Add up to `BATCH_SIZE` calls; existing ones do not change.

        Args:
            source: the source that names them, such as a file; None for pushed calls.
            new: the calls; of duplicates, the first counts.
            now: Unix time.
            max_calls: maximum of open calls per account; further calls are refused.
        """
        return self._insert([new], now, max_calls, source=source)

    def push(
        self, requests: Sequence[Sequence[NewCall]], now: float, max_calls: float = math.inf
    ) -> InsertResult:
        """Add about `BATCH_SIZE` pushed calls, all calls of a request or none of them."""
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
            interval=naming_interval(self._retention),
            limits=self.limits,
        )
        self.open_calls.add(result.added)
        return result

    def delete(self, row: int, now: float) -> bool:
        """Delete an open call; return whether there was one.

        The row stays, marked as deleted, as long as the row of a finished call: queries that still
        return the call and late callbacks do not add it again. Pushing it does, and so does a file
        that names it.
        """
        deleted = self.database.run(delete_call, row, now, self.exporter)
        self.open_calls.remove(deleted)
        return bool(deleted)

    def keep_only(self, source: str, rows: set[int]) -> list[int]:
        """Record that `source` now names only the calls `rows`.

        The retention of finished calls that it named starts now, because the source may name them
        again: a file may be missing for a moment.

        Returns:
            The rows of open calls that no source names any more. They are removed, not counted.
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
        """Write observations in one transaction."""
        committed = self.database.run(
            commit, observations, self.outbox, self._clock.ahead, self.exporter
        )
        self.open_calls.remove(committed.by_account)
        return committed

    def keep(self, row: int) -> bool:
        """Mark a call as pushed, so that it stays if no source names it; return whether it exists.

        The retention of a finished call starts again; see `naming_interval` for how often.
        """
        return self.database.run(
            keep_call, row, self._clock.now(), naming_interval(self._retention)
        )

    def set_price(self, row: int, price: float) -> dict[TotalKey, float]:
        """Store the price of a call; see `set_price`."""
        return self.database.run(set_price, row, price, self.exporter)


def _snapshot(
    connection: Connection, names: Collection[str] | None, limits: LabelLimits
) -> Snapshot:
    wanted = true() if names is None else accounts.c.name.in_(list(names))
    known = select(accounts.c.name, accounts.c.id).where(wanted).order_by(accounts.c.name)
    # Wait for transactions that change totals of these accounts.
    for name, row in connection.execute(known).all():
        limit_labels(connection, name, row, limits)
    # Not as JSON: SQLite would round the values, and a counter could decrease.
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


# Commits: observations and their increments of the totals, in one transaction.


# Plain strings: serializing enum members to JSON is slow.
_TEXT: Final = {
    member: member.value for kind in (CallState, Result, Status, Key) for member in kind
}

# Lock the rows: if two exporters finish a call at the same time, only one counts it. The fixed
# order avoids deadlocks; `key_share` does not block inserts into `call_sources`.
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
    """Return the new values of columns: the fields after the row id, in this order."""
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
    """Write observations of distinct calls, and the notifications of calls that finish.

    A call finishes once: observations of calls that are not open any more are ignored.

    Args:
        connection: in a transaction.
        observations: the group.
        outbox: stores the notifications.
        ahead: seconds by which the ledger's clock is ahead of the machine's.
        exporter: the id of this process; None if the ledger is not shared.
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
    """Store the price of a call, in VND.

    The last price before the finish is added to the totals with the finish. After the finish, a
    price replaces a missing one or 0, and is added at once.

    Returns:
        The increments of the totals.
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
