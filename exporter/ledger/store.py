"""Adds, finishes and removes the calls of one exporter in the ledger.

Blocking: `exporter.ledger.ledger.Ledger` runs it in a thread.
"""

from __future__ import annotations

import math
import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Connection,
    Float,
    Update,
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

from exporter.calls import (
    WATCHED,
    CallbackOutcome,
    CallState,
    Finished,
    Key,
    PollAgain,
    Result,
    Status,
)
from exporter.errors import LedgerConflictError
from exporter.ids import Kind, reference_key
from exporter.ledger.calls import UNNAMED, label_sets_of, row_of
from exporter.ledger.clock import LedgerClock
from exporter.ledger.engine import Database
from exporter.ledger.history import CallEvent, EventKind, add_history, add_replaced_states
from exporter.ledger.json_rows import (
    ROWS,
    fetch_json,
    field,
    insert_rows,
    is_given,
    select_json,
    to_json_rows,
)
from exporter.ledger.labels import (
    COUNTED_AS,
    FOLDED,
    NO_LIMITS,
    Counted,
    LabelLimits,
    add_totals,
    canonical,
    count_labels,
    keep_labels,
)
from exporter.ledger.leases import FORGET, notify_holders, notify_of_totals
from exporter.ledger.outbox import Outbox
from exporter.ledger.schema import (
    UNFINISHED_ROW,
    accounts,
    call_sources,
    calls,
    counted_labels,
    folded_labels,
    totals,
)
from exporter.ledger.totals import (
    CountedCall,
    TotalKey,
    TotalKind,
    additions,
    price_added,
)
from exporter.ledger.types import (
    BATCH_SIZE,
    DELETED,
    Committed,
    Count,
    FinishedCall,
    InsertResult,
    NewCall,
    Observation,
    Snapshot,
    StoredCall,
)

PAGE_SIZE: Final = 5 * BATCH_SIZE
"""Page size for reading all open calls: each page costs a switch between the ledger's thread and
the event loop."""

# Distinct times to cache while all calls are read: more than the seconds of a day.
_SECONDS: Final = 100_000

_NAMING_INTERVAL: Final = 600.0

_Key = tuple[int, str]
"""The row of an account, and a normalized id."""

# Plain strings: serializing enum members to JSON is slow.
_CALLBACK_EVENT: Final = EventKind.CALLBACK.value
_ACCEPTED: Final = CallbackOutcome.ACCEPTED.value
_TEXT: Final = {
    member: member.value for kind in (CallState, Result, Status, Key) for member in kind
}
# Calling an enumeration is slow, too.
_STATES: Final = {state.value: state for state in CallState}

# Reading calls and totals.

_UNFINISHED_PAGE: Final = (
    select(
        *calls.c["id", "reference_id", "first_watched", "state", "state_since", "kind"],
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
    .limit(PAGE_SIZE)
    .subquery()
)
_UNFINISHED: Final = select_json(*_UNFINISHED_PAGE.c)
_STARTED: Final = select(accounts.c.name, counted_labels.c.label_set_id).join_from(
    counted_labels, accounts
)
# Not as JSON: SQLite would round the values, and a counter could decrease.
_TOTALS: Final = select(
    accounts.c.name, totals.c.label_set_id, totals.c.total, totals.c.cell, totals.c.value
).join(accounts)
_OPEN: Final = select(func.count().label("calls"), func.max(calls.c.id).label("newest")).where(
    calls.c.result.is_(None)
)
_BY_ACCOUNT: Final = _OPEN.add_columns(calls.c.account_id).group_by(calls.c.account_id).subquery()
_ALL_OPEN: Final = select(accounts.c.name, _BY_ACCOUNT.c.calls, _BY_ACCOUNT.c.newest).join_from(
    accounts, _BY_ACCOUNT
)
_NEWER: Final = _OPEN.where(
    calls.c.account_id == bindparam("account"), calls.c.id > bindparam("newest")
)

# Adding calls.

_NOW: Final = bindparam("now", type_=Float())
_FIND: Final = select_json(
    *calls.c["account_id", "normalized_id", "id", "epoch", "result"]
).join_from(
    ROWS,
    calls,
    and_(
        calls.c.account_id == field(0, calls.c.account_id),
        calls.c.normalized_id == field(1, calls.c.normalized_id),
    ),
)
_INSERT: Final = insert_rows(
    *calls.c["account_id", "normalized_id", "reference_id", "label_set_id", "epoch", "kind"],
    pushed=bindparam("pushed", type_=Boolean()),
    first_watched=_NOW,
    state=literal(CallState.NEW.value),
    state_since=_NOW,
)
_NAME: Final = insert_rows(
    call_sources.c.call_id, source=bindparam("source", type_=call_sources.c.source.type)
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
_not_recent = or_(calls.c.named_at.is_(None), calls.c.named_at < _recent)
_PUSH: Final = (
    update(calls)
    .where(
        _locked(or_(calls.c.pushed.is_(False), and_(calls.c.finished_at < _recent, _not_recent)))
    )
    .values(pushed=True, named_at=_NOW)
)
_COUNT: Final = select(func.count()).where(is_given(calls.c.id))
_DELETE: Final = delete(calls).where(_locked(key_share=False))

_ACCOUNT: Final = select(*accounts.c["name", "id"]).join_from(calls, accounts)
# The retention of a finished call starts when it was last named.
_NAMED_UNTIL: Final = (
    update(calls).where(_locked(calls.c.result.is_not(None))).values(named_at=_NOW)
)
_NOT_IN: Final = select_json(call_sources.c.call_id).where(
    call_sources.c.source == bindparam("source"), ~is_given(call_sources.c.call_id)
)

# Lock the rows: if two exporters finish a call at the same time, only one counts it. The fixed
# order avoids deadlocks; `key_share` does not block inserts into `call_sources`.
_HELD: Final = (
    select(
        *calls.c["id", "account_id", "label_set_id", "price", "canary_run_id"],
        COUNTED_AS.label("counted_as"),
    )
    .outerjoin_from(calls, folded_labels, FOLDED)
    .where(is_given(calls.c.id), UNFINISHED_ROW)
    .order_by(calls.c.id)
    .with_for_update(of=calls, key_share=True)
    .subquery()
)
_OPEN_ROWS: Final = select_json(*_HELD.c)
_SET_OF: Final = select(COUNTED_AS).select_from(calls).outerjoin(folded_labels, FOLDED)


def _update_given(*columns: str) -> Update:
    """Return an update of given open calls: a row is an id, then the new values of columns."""
    values = {name: field(number, calls.c[name]) for number, name in enumerate(columns, 1)}
    return update(calls).where(calls.c.id == field(0, calls.c.id), UNFINISHED_ROW).values(values)


_SET_STATE: Final = _update_given("state", "state_since")
_price: Final = func.coalesce(field(8, calls.c.price), calls.c.price)
_FINISH: Final = _update_given(
    *("result", "status", "duration", "key", "finished_at", "delivered", "failed")
).values(price=_price)


def naming_interval(retention: float) -> float:
    """Return the minimum interval between updates of `named_at`. Both times are in seconds.

    A query that returns a finished call twice per retention keeps it from being pruned.
    """
    return min(_NAMING_INTERVAL, retention / 4)


class StoreSettings(NamedTuple):
    """What the configuration says about the calls of a ledger.

    Attributes:
        limits: limits of the labels of each account.
        retention: seconds to keep finished calls.
        max_calls: limit of open calls of each account.
        kinds: the default kind by account; `Kind.CALL` for other accounts.
        history: whether to write the events of calls.
        exemplars: whether commits return the newest call of each total.
    """

    limits: LabelLimits = NO_LIMITS
    retention: float = math.inf
    max_calls: float = math.inf
    kinds: Mapping[str, Kind] = MappingProxyType({})
    history: bool = True
    exemplars: bool = False


class Store:
    """An open database with the exporter's state: settings, open calls, and epochs of leases.

    Run methods of a connection with `Database.run`; the others are one transaction, or a few short
    ones. Operations that do not need this state are functions of a connection.

    Attributes:
        epochs: of the held leases on the polled accounts.
        exporter: the id of this process; None if the ledger is not shared.
        settings: the current settings.
    """

    def __init__(self, database: Database, clock: LedgerClock | None = None) -> None:
        self.database = database
        self._clock = clock or LedgerClock()
        self.outbox = Outbox(self._clock)
        self.epochs: dict[str, int] = {}
        self.exporter = uuid.uuid4().hex if database.shared else None
        self._seconds: dict[float, float] = {}
        self.settings = StoreSettings()
        database.run(self.recount)

    def configure(self, settings: StoreSettings) -> None:
        self.settings = settings
        self.outbox.set_history(on=settings.history)

    def set_epoch(self, account: str, epoch: int | None) -> None:
        """Set the epoch of the held lease on an account; None once the lease is lost."""
        if epoch is None:
            self.epochs.pop(account, None)
        else:
            self.epochs[account] = epoch

    # Reading calls and totals.

    def snapshot(self, connection: Connection, names: Collection[str] | None = None) -> Snapshot:
        """Return the data behind the metrics of finished calls, after applying the limits."""
        wanted = true() if names is None else accounts.c.name.in_(list(names))
        known = connection.execute(select(accounts).where(wanted))
        rows = {row.name: row.id for row in known}
        # Waits for transactions that change totals of these accounts.
        count_labels(connection, rows, {}, self.settings.limits)
        found = {
            TotalKey(name, labels, TotalKind(total), cell): value
            for name, labels, total, cell, value in connection.execute(_TOTALS.where(wanted))
        }
        started = {(name, labels) for name, labels in connection.execute(_STARTED.where(wanted))}
        sets = {row for _, row in started}.union(cell.labels for cell in found)
        return Snapshot(label_sets_of(connection, sets), found, started)

    def unfinished(self, account: str, after: int = 0) -> list[StoredCall]:
        """Return the first `PAGE_SIZE` open calls of an account after a row."""
        with self.database.begin() as connection:
            rows = fetch_json(connection, _UNFINISHED, account=account, after=after)
        # Share equal `float`s between calls: many calls have the same times, and this saves a
        # tenth of their memory.
        times: dict[float, float] = {}
        if len(rows) < PAGE_SIZE or len(self._seconds) > _SECONDS:
            self._seconds = {}
        return [
            StoredCall(
                account,
                WATCHED[kind](
                    row,
                    text,
                    times.setdefault(watched, watched),
                    _STATES[state],
                    self._seconds.setdefault(since, times.setdefault(since, since)),
                    label_set=labels,
                ),
            )
            for row, text, watched, state, since, kind, labels in sorted(rows)
        ]

    def recount(self, connection: Connection) -> None:
        """Count all open calls, which takes 0.1 s for a million.

        The counts are kept in memory. In a shared ledger, the calls that other exporters finish are
        subtracted only here: until then, a count may be too high.
        """
        found = connection.execute(_ALL_OPEN).all()
        self._open = Counter({name: count for name, count, _ in found})
        self._newest = {name: newest for name, _, newest in found}

    def _room(self, connection: Connection, rows: Mapping[str, int]) -> dict[str, float]:
        """Return how many calls may be added to each account; `rows` has the accounts' rows."""
        if self.exporter:
            for name, row in rows.items():
                newer = {"account": row, "newest": self._newest.get(name, 0)}
                count, newest = connection.execute(_NEWER, newer).one()
                if count:
                    self._open[name] += count
                    self._newest[name] = newest
        return {name: self.settings.max_calls - self._open[name] for name in rows}

    # Adding calls.

    def watch(self, source: str | None, new: Sequence[NewCall], now: float) -> InsertResult:
        """Add up to `BATCH_SIZE` calls of a source that lists its calls, such as a file.

        Without a source, the calls are marked as pushed. Existing calls do not change. Of
        duplicates, the first counts. Calls beyond `max_calls` of an account are refused.
        """
        return self._added(self.database.run(self.insert, [new], now, source=source))

    def push(self, requests: Sequence[Sequence[NewCall]], now: float) -> InsertResult:
        """Add about `BATCH_SIZE` pushed calls, all calls of a request or none of them."""
        return self._added(self.database.run(self.insert, requests, now, whole=True))

    def _added(self, result: InsertResult) -> InsertResult:
        for account, call in result.added:
            self._open[account] += 1
            self._newest[account] = max(call.id, self._newest.get(account, 0))
        return result

    def insert(
        self,
        connection: Connection,
        requests: Sequence[Sequence[NewCall]],
        now: float,
        *,
        source: str | None = None,
        whole: bool = False,
    ) -> InsertResult:
        """Add the calls of requests; see `watch`, and `push` for `whole`.

        Deleted calls are added again, unless they come from a query.

        Raises:
            LedgerConflictError: another exporter has removed one of the existing calls.
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
            key: row
            for key, (row, _, result) in found.items()
            if not (revive and result == DELETED)
        }
        missing, rows, refused = dict[_Key, NewCall](), set[int](), Counter[str]()
        room, existing, counts = self._room(connection, ids), set(known), list[Count | str]()
        for request in keyed:
            left = dict(room)
            new, over = _fitting(request, existing, left)
            refused += over
            if over and whole:
                counts.append(next(iter(over)))
                continue
            room = left
            missing |= new
            existing |= new.keys()
            rows.update(known[key] for key, _ in request if key in known)
            counts.append(Count(len(new), len(request) - len(new)))
        if revived := [found[key][0] for key in missing if key in found]:
            connection.execute(_DELETE, {"rows": to_json_rows(revived)})
        added, inserted, counted = self._insert(connection, missing, now, pushed=source is None)
        if source is None and rows:
            self._push(connection, rows, now)
            # The rows are locked now: no exporter can remove them before the commit.
            if self.exporter and _count(connection, rows) != len(rows):
                raise LedgerConflictError("ledger: a call was removed while it was pushed again")
        rows |= inserted
        if source is not None:
            connection.execute(_NAME, {"source": source, "rows": to_json_rows(sorted(rows))})
        return InsertResult(added, counted.labels, counts, refused, rows, counted.series)

    def _insert(
        self, connection: Connection, missing: Mapping[_Key, NewCall], now: float, *, pushed: bool
    ) -> tuple[list[StoredCall], set[int], Counted]:
        """Add missing calls; return those to poll, and the rows of all of them."""
        names = {key: (call.account, canonical(call.labels)) for key, call in missing.items()}
        labels = {names[key]: call.labels for key, call in missing.items()}
        ids = {call.account: account for (account, _), call in missing.items()}
        counted = count_labels(connection, ids, labels, self.settings.limits)
        notify_of_totals(connection, self.exporter, {name for name, _ in chain(*counted.series)})
        # Insert in a fixed order to avoid deadlocks between exporters.
        ordered = sorted(missing.items(), key=itemgetter(0)) if self.exporter else missing.items()
        values = to_json_rows(
            (
                *(*key, call.reference_id, counted.sets[names[key]][0]),
                *(self._epoch(call.account), self._kind(call).value),
            )
            for key, call in ordered
        )
        found = dict[_Key, tuple[int, int, str | None]]()
        # Retry if another exporter inserted a call first and deleted it again.
        while len(found) < len(missing):
            connection.execute(_INSERT, {"rows": values, "pushed": pushed, "now": now})
            found = _find(connection, missing)
        mine = [
            StoredCall(
                call.account,
                WATCHED[self._kind(call)](
                    found[key][0],
                    call.reference_id,
                    now,
                    state_since=now,
                    label_set=counted.sets[names[key]][1],
                ),
            )
            for key, call in missing.items()
            # Calls that another exporter inserted first are claimed by the holder of the lease.
            if found[key][1] == self._epoch(call.account)
        ]
        return mine, {row for row, *_ in found.values()}, counted

    def _kind(self, call: NewCall) -> Kind:
        return call.kind or self.settings.kinds.get(call.account, Kind.CALL)

    def _epoch(self, account: str) -> int:
        return self.epochs.get(account, 0)

    def _push(self, connection: Connection, rows: Collection[int], now: float) -> None:
        """Record that existing calls were pushed again."""
        recent = now - naming_interval(self.settings.retention)
        connection.execute(_PUSH, {"rows": to_json_rows(rows), "now": now, "recent": recent})

    def mark_pushed(self, connection: Connection, row: int) -> bool:
        """Mark a call as pushed, so that it stays if no source names it; return whether it exists.

        The retention of a finished call starts again; see `naming_interval` for how often.
        """
        self._push(connection, [row], self._clock.now())
        return _count(connection, [row]) == 1

    # Removing calls.

    def delete(self, row: int, now: float) -> bool:
        """Delete an open call; return whether there was one.

        The row stays, marked as deleted, as long as the row of a finished call: queries that still
        return the call, and late callbacks, do not add it again. A push or a file that names it
        does.
        """
        account = self.database.run(self._delete, row, now)
        if account is not None:
            self._open[account] -= 1
        return account is not None

    def _delete(self, connection: Connection, row: int, now: float) -> str | None:
        unfinished = update(calls).where(calls.c.id == row, calls.c.result.is_(None))
        if not connection.execute(unfinished.values(result=DELETED, finished_at=now)).rowcount:
            return None
        connection.execute(delete(call_sources).where(call_sources.c.call_id == row))
        notify_holders(connection, self.exporter, [row], FORGET)
        return connection.scalar(_ACCOUNT.where(calls.c.id == row))

    def keep_only(self, source: str, rows: set[int]) -> list[int]:
        """Record that `source` now names only the calls `rows`.

        The retention of finished calls that it named starts now, because the source may name them
        again: a file may be missing for a moment. Remove open calls that no source names any more,
        without counting them, and return their rows.
        """
        with self.database.begin() as connection:
            given = {"source": source, "rows": to_json_rows(rows)}
            unnamed = [row for (row,) in fetch_json(connection, _NOT_IN, **given)]
        removed, now = list[int](), self._clock.now()
        for start in range(0, len(unnamed), BATCH_SIZE):
            batch = unnamed[start : start + BATCH_SIZE]
            deleted = self.database.run(self.remove_source, source, batch, now)
            self._open.subtract(deleted.values())
            removed += deleted
        return removed

    def remove_source(
        self, connection: Connection, source: str, rows: Sequence[int], now: float
    ) -> dict[int, str]:
        """Record that a source no longer names calls; return the accounts of removed calls."""
        named = call_sources.c.source == source, call_sources.c.call_id.in_(rows)
        connection.execute(delete(call_sources).where(*named))
        connection.execute(_NAMED_UNTIL, {"rows": to_json_rows(rows), "now": now})
        left = calls.c.id.in_(rows), UNFINISHED_ROW, calls.c.pushed.is_(False)
        if self.exporter:
            # Wait for other exporters that are naming one of the calls; the next query sees the
            # result.
            held = select(calls.c.id).where(*left).order_by(calls.c.id).with_for_update()
            connection.execute(held)
        unnamed = _ACCOUNT.add_columns(calls.c.id).where(*left, UNNAMED)
        removed = {row: name for name, _, row in connection.execute(unnamed)}
        notify_holders(connection, self.exporter, list(removed), FORGET)
        connection.execute(delete(calls).where(calls.c.id.in_(removed)))
        return removed

    # Commits: observations and their increments of the totals, in one transaction.

    def commit(self, observations: Sequence[Observation]) -> Committed:
        """Write observations of distinct calls, and the notifications of calls that finish.

        A call finishes once: observations of calls that are not open any more are ignored.
        """
        committed = self.database.run(self.write, observations)
        self._open.subtract(call.account for call in committed.finished)
        return committed

    def write(self, connection: Connection, observations: Sequence[Observation]) -> Committed:
        """Write observations; see `commit`."""
        finishing = (o.account for o in observations if isinstance(o.verdict, Finished))
        keep_labels(connection, finishing)
        ids = [observation.call.id for observation in observations]
        found_open = fetch_json(connection, _OPEN_ROWS, rows=to_json_rows(ids))
        held = {row: rest for row, *rest in found_open}
        states, finished, events = list[tuple[Any, ...]](), list[tuple[Any, ...]](), []
        account_ids, ahead = dict[str, int](), self._clock.ahead
        added: defaultdict[TotalKey, float] = defaultdict(float)
        newest, exemplars = dict[TotalKey, CountedCall](), self.settings.exemplars
        for account, call, found, at, _ in observations:
            if call.id not in held:
                continue
            if isinstance(found, PollAgain):
                states.append((call.id, _TEXT[found.state], at))
                continue
            key = None if found.key is None else _TEXT[found.key]
            ending = _TEXT[found.result], _TEXT[found.status], found.duration, key
            receivers = found.receivers or (None, None)
            finished.append((call.id, *ending, at, *receivers, found.price))
            account_id, labels, price, canary, counted_as = held[call.id]
            if canary is not None:
                continue
            times = call.first_watched - ahead, at - ahead
            message = call.kind.value, *receivers
            event = FinishedCall(account, call.reference_id, *ending, {}, *times, *message)
            events.append((labels, call.id, event))
            account_ids[account] = account_id
            delay = at - call.first_watched
            price = price if found.price is None else found.price
            for cell, amount, value in additions(
                account, counted_as, found, delay, price, call.kind
            ):
                added[cell] += amount
                if exemplars and value is not None:
                    newest[cell] = CountedCall(call.reference_id, value, times[1])
        if states:
            self._set_states(connection, to_json_rows(states))
        if finished:
            connection.execute(_FINISH, {"rows": to_json_rows(finished)})
        callbacks = (one for one in observations if one.from_callback and one.call.id in held)
        self._add_history(
            connection,
            (CallEvent(one.call.id, one.at, _CALLBACK_EVENT, _ACCEPTED) for one in callbacks),
        )
        if added:
            add_totals(connection, added, account_ids)
            notify_of_totals(connection, self.exporter, account_ids)
        notify_holders(connection, self.exporter, [row for row, *_ in finished], FORGET)
        notify = self.outbox.add(connection, events)
        ignored = frozenset(ids) - held.keys()
        return Committed(dict(added), ignored, [event for *_, event in events], notify, newest)

    def record_callback(
        self, connection: Connection, row: int, outcome: CallbackOutcome, price: float | None
    ) -> dict[TotalKey, float]:
        """Write a callback that did not finish its call, and the price in it, in VND.

        The price of an open call is added to the totals when the call finishes; the last one
        counts. The price of a finished call is added now, unless it had one above 0. Return the
        increments of totals.
        """
        added = {} if price is None else self._set_price(connection, row, price)
        event = CallEvent(row, self._clock.now(), _CALLBACK_EVENT, outcome.value)
        self._add_history(connection, [event])
        return added

    def _set_states(self, connection: Connection, rows: str) -> None:
        if self.settings.history:
            add_replaced_states(connection, rows)
        connection.execute(_SET_STATE, {"rows": rows})

    def _add_history(self, connection: Connection, events: Iterable[CallEvent]) -> None:
        if self.settings.history:
            add_history(connection, events)

    def _set_price(self, connection: Connection, row: int, price: float) -> dict[TotalKey, float]:
        account = connection.execute(_ACCOUNT.where(calls.c.id == row)).first()
        if account is None:
            return {}
        keep_labels(connection, [account.name])
        none_added = and_(calls.c.result != DELETED, func.coalesce(calls.c.price, 0) == 0)
        open_still = or_(calls.c.result.is_(None), none_added)
        known = update(calls).where(calls.c.id == row, open_still).values(price=price)
        returned = calls.c["result", "canary_run_id", "kind"]
        found = connection.execute(known.returning(*returned)).first()
        if found is None or found.result is None or found.canary_run_id is not None:
            return {}
        counted_as = connection.scalars(_SET_OF.where(calls.c.id == row)).one()
        cell, amount = price_added(account.name, counted_as, price, Kind(found.kind))
        add_totals(connection, {cell: amount}, {account.name: account.id})
        notify_of_totals(connection, self.exporter, [account.name])
        return {cell: amount}


def _find(connection: Connection, keys: Iterable[_Key]) -> dict[_Key, tuple[int, int, str | None]]:
    """Return the row, epoch and result of each existing call, by key."""
    found = fetch_json(connection, _FIND, rows=to_json_rows(keys))
    return {(account, key): (row, epoch, result) for account, key, row, epoch, result in found}


def _fitting(
    request: Iterable[tuple[_Key, NewCall]], existing: Collection[_Key], room: dict[str, float]
) -> tuple[dict[_Key, NewCall], Counter[str]]:
    """Return the new calls that there is room for, and how many others there are, by account."""
    new, over = dict[_Key, NewCall](), Counter[str]()
    for key, call in request:
        if key not in existing and key not in new:
            if room[call.account] >= 1:
                room[call.account] -= 1
                new[key] = call
            else:
                over[call.account] += 1
    return new, over


def _count(connection: Connection, rows: Collection[int]) -> int:
    """Return how many of some calls exist."""
    return connection.scalar(_COUNT, {"rows": to_json_rows(rows)}) or 0
