"""Notifications that are still to be sent. Blocking, as `exporter.ledger.store` is.

They are written with the finish that they tell of, in one transaction: whatever ends the process,
both are there or neither is. An exporter claims some for a time, by the ledger's clock; what is
not settled by then is free for others, or for the next start.

Those that were never refused and those that were are claimed apart, and each kind in turns from
account to account: neither old retries nor another account's backlog delay a new event.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Sequence
from itertools import islice, zip_longest
from typing import Final, NamedTuple

from pydantic_core import from_json
from sqlalchemy import (
    Boolean,
    ColumnElement,
    Connection,
    Float,
    ScalarSelect,
    and_,
    bindparam,
    case,
    delete,
    false,
    func,
    insert,
    literal,
    select,
    text,
    true,
    update,
)

from exporter.calls import Finished, WatchedCall
from exporter.ledger.bulk import fetch, field, given, item, listed, packed
from exporter.ledger.clock import LedgerClock, machine_clocks
from exporter.ledger.engine import Database
from exporter.ledger.records import CHUNK
from exporter.ledger.schema import label_sets, notifications
from exporter.notify.event import finished_event
from exporter.notify.routes import Route

FARTHEST: Final = 1_200.0
"""Seconds beyond which nothing is put off: what seems to be was written before the clock was set
back, and is due."""

_rows: Final = given("rows")
_columns: Final = notifications.c
_target: Final = bindparam("this_target", type_=_columns.target.type)
_now: Final = bindparam("now", type_=Float())

_LABELS: Final = listed(label_sets.c.id, label_sets.c.labels).where(
    label_sets.c.id.in_(select(item(_rows, label_sets.c.id)))
)
_QUEUE: Final = insert(notifications).from_select(
    [
        *("target", "account", "event_id", "event", "give_up_at", "queued_at", "due_at"),
        *("attempts", "retry"),
    ],
    select(
        field(_rows, 0, _columns.target),
        field(_rows, 1, _columns.account),
        field(_rows, 2, _columns.event_id),
        field(_rows, 3, _columns.event),
        _now + field(_rows, 4, _columns.give_up_at),
        _now,
        _now,
        literal(0),
        false(),
    )
    .select_from(_rows)
    # Without a condition, SQLite takes what follows for a part of the join.
    .where(true()),
    include_defaults=False,
)

_of_kind: Final = and_(
    _columns.target == _target, _columns.retry == bindparam("retry", type_=Boolean())
)


def _account_after(account: ColumnElement[str]) -> ScalarSelect[str]:
    following = select(func.min(_columns.account)).where(_of_kind, _columns.account > account)
    return following.scalar_subquery()


# From one account to the next by the index, however many notifications each of them has.
_first: Final = select(
    _account_after(bindparam("after", type_=_columns.account.type)).label("account")
).cte("pending", recursive=True)
_pending: Final = _first.union_all(
    select(_account_after(_first.c.account)).where(_first.c.account.is_not(None))
)
_ACCOUNTS: Final = (
    select(_pending.c.account)
    .where(
        _pending.c.account.not_in(select(item(_rows, _columns.account))),
        # Not as EXISTS: PostgreSQL would join, and read all that is due.
        select(func.min(_columns.due_at))
        .where(_of_kind, _columns.account == _pending.c.account)
        .scalar_subquery()
        <= _now,
    )
    .limit(bindparam("limit"))
)
_due: Final = (
    select(_columns.id, _columns.attempts, _columns.event_id, _columns.event)
    .where(_of_kind, _columns.account == item(_rows, _columns.account), _columns.due_at <= _now)
    .order_by(_columns.due_at)
    .limit(bindparam("limit"))
    # Of two exporters that ask at the same time, each gets others.
    .with_for_update(skip_locked=True)
    .correlate(_rows)
    .subquery()
)
_CLAIMABLE: Final = select(
    item(_rows, _columns.account), listed(*_due.c).scalar_subquery()
).select_from(_rows)
_IS_GIVEN: Final = _columns.id.in_(select(item(_rows, _columns.id)))
_CLAIM: Final = (
    update(notifications)
    .where(_IS_GIVEN)
    .values(due_at=_now + bindparam("lease", type_=Float()), attempts=_columns.attempts + 1)
)
# Not if it was claimed anew since: somebody else is at it.
_IS_STILL_MINE: Final = and_(
    _columns.id == field(_rows, 0, _columns.id),
    _columns.attempts == field(_rows, 1, _columns.attempts),
)
_again_at: Final = _now + field(_rows, 2, _columns.due_at)
_PUT_OFF: Final = (
    update(notifications)
    .where(_IS_STILL_MINE)
    .values(
        # One last attempt when the time is over.
        due_at=case((_again_at < _columns.give_up_at, _again_at), else_=_columns.give_up_at),
        retry=true(),
    )
)
_RELEASE: Final = (
    update(notifications).where(_IS_STILL_MINE).values(due_at=_now, attempts=_columns.attempts - 1)
)
_FREE: Final = update(notifications).where(_columns.due_at > _now).values(due_at=_now)
_DELETE: Final = delete(notifications).where(_IS_GIVEN)
_DELETE_OVERDUE: Final = _DELETE.where(_columns.give_up_at <= _now)
_OVERDUE: Final = (
    select(_columns.id)
    .where(
        _columns.target == _target,
        _columns.give_up_at > _now - bindparam("longest", type_=Float()),
        _columns.give_up_at <= _now - bindparam("least", type_=Float()),
        _columns.due_at <= _now,  # else it is under way
    )
    .limit(CHUNK)
    .with_for_update(skip_locked=True)
    .subquery()
)
_DELETE_ALL_OVERDUE: Final = delete(notifications).where(_columns.id.in_(select(_OVERDUE.c.id)))
_NEXT: Final = select(func.min(_columns.due_at)).where(_columns.target == _target)
_COUNT: Final = select(func.count(), func.min(_columns.queued_at)).where(_columns.target == _target)
_HASTEN: Final = (
    update(notifications)
    .where(_columns.target == _target, _columns.due_at > _now + FARTHEST)
    .values(due_at=_now)
)
_CLOCK: Final = text("SELECT extract(epoch FROM clock_timestamp())::float8")


class Finish(NamedTuple):
    """A call that has finished; `labels` is the row of its labels."""

    account: str
    labels: int
    call: WatchedCall
    finished: Finished
    at: float


class Notification(NamedTuple):
    """A claimed notification.

    Attributes:
        id: its row.
        attempts: how often it was claimed, this time included; also says whose claim it is.
        event: the event's id.
        body: what is to be sent.
        account: of the call.
        retry: it has been refused before.
    """

    id: int
    attempts: int
    event: str
    body: str
    account: str
    retry: bool


class Claim(NamedTuple):
    """What is to be claimed.

    Attributes:
        retry: those that were refused before, or the others.
        limit: how many at most; accounts have equal shares of them.
        full: accounts of which no more are wanted.
        avoid: the id of an event that is claimed only if there is no other.
    """

    retry: bool
    limit: int
    full: Collection[str] = ()
    avoid: str | None = None


class Settled(NamedTuple):
    """What became of claimed notifications.

    Attributes:
        delivered: they are done with.
        refused: they are not wanted, ever.
        put_off: they are to be tried again, each after some seconds, unless their time is over.
        released: they were not tried.
    """

    delivered: Sequence[Notification] = ()
    refused: Sequence[Notification] = ()
    put_off: Sequence[tuple[Notification, float]] = ()
    released: Sequence[Notification] = ()


class Step(NamedTuple):
    """What a step brought.

    Attributes:
        delivered: how many were, that nobody had settled before.
        gave_up: how many will never be.
        claimed: what is to be sent now.
        due_in: seconds until the next one is due that is left; None where there is none.
    """

    delivered: int
    gave_up: int
    claimed: list[Notification]
    due_in: float | None


class Backlog(NamedTuple):
    """What a target has not been told yet.

    Attributes:
        pending: how many notifications.
        oldest: when the first of them was written (Unix time); None where there is none.
    """

    pending: int
    oldest: float | None


def queue(
    connection: Connection,
    routes: Collection[Route],
    finishes: Sequence[Finish],
    clock: LedgerClock,
) -> frozenset[str]:
    """Write what is to be told of finished calls, in the transaction that finishes them.

    Returns:
        The targets that are to be told something.
    """
    found = fetch(connection, _LABELS, rows=packed({finish.labels for finish in finishes}))
    labels = {row: json.loads(text) for row, text in found}
    targets = set()

    def events() -> Iterable[tuple[str, str, str, str, float]]:
        for account, row, call, finished, at in finishes:
            takers = [route for route in routes if route.takes(account, finished, labels[row])]
            if not takers:
                continue
            event = finished_event(account, call, finished, at, labels[row])
            for route in takers:
                targets.add(route.target)
                yield route.target, account, event.id, event.body, route.give_up_after

    rows = iter(events())
    now = _time(connection, clock)
    while chunk := list(islice(rows, CHUNK)):
        connection.execute(_QUEUE, {"rows": packed(chunk), "now": now})
    return frozenset(targets)


class Outbox:
    """The statements of whoever sends notifications. Each method is one transaction.

    Args:
        database: the ledger's.
        clock: the ledger's; the machine's by default.
    """

    def __init__(self, database: Database, clock: LedgerClock | None = None) -> None:
        self._database = database
        self._clock = clock or LedgerClock(machine_clocks())
        self._last: dict[tuple[str, bool], str] = {}  # the account whose turn was last

    def step(
        self,
        target: str,
        settled: Settled,
        claims: Sequence[Claim],
        lease: float,
        limit: float = math.inf,
    ) -> Step:
        """Settle what was claimed, and claim more.

        Args:
            target: whose notifications.
            settled: what became of those that were claimed.
            claims: what to claim, the most wanted first.
            lease: seconds for which they are claimed.
            limit: how many to claim at most, of all kinds.
        """

        def work(connection: Connection) -> Step:
            now = _time(connection, self._clock)
            delivered, gave_up = _settle(connection, settled, now)
            claimed: list[Notification] = []
            for claim in claims:
                due_at = connection.scalar(_NEXT, {"this_target": target})
                if due_at is None or due_at > now:
                    break
                room = int(min(claim.limit, limit - len(claimed)))
                if room > 0:
                    found = self._due(connection, target, claim._replace(limit=room), now)
                    rows = packed(one.id for one in found)
                    connection.execute(_CLAIM, {"rows": rows, "now": now, "lease": lease})
                    claimed += found
            due_at = connection.scalar(_NEXT, {"this_target": target})
            due_in = None if due_at is None else max(0.0, due_at - now)
            return Step(delivered, gave_up, claimed, due_in)

        return self._database.run(work)

    def give_up(self, target: str, least: float, longest: float) -> int:
        """Delete notifications whose time is over, tried or not, but for those under way.

        Args:
            target: whose notifications.
            least: seconds for which it has been over, at least.
            longest: seconds for which it has been over, at most.

        Returns:
            How many; at most `CHUNK`.
        """

        def work(connection: Connection) -> int:
            ages = {"least": least, "longest": longest}
            parameters = {"this_target": target, "now": _time(connection, self._clock), **ages}
            return connection.execute(_DELETE_ALL_OVERDUE, parameters).rowcount

        return self._database.run(work)

    def _due(
        self, connection: Connection, target: str, claim: Claim, now: float
    ) -> list[Notification]:
        """Return what is due, from one account to the next after the one whose turn was last."""
        kind = {"this_target": target, "retry": claim.retry, "now": now}
        last = self._last.get((target, claim.retry), "")
        accounts: list[str] = []
        for after in dict.fromkeys((last, "")):
            if len(accounts) < claim.limit:
                given = {"after": after, "limit": claim.limit, "rows": packed(claim.full)}
                accounts += connection.scalars(_ACCOUNTS, {**kind, **given})
        accounts = list(dict.fromkeys(accounts))[: claim.limit]
        if not accounts:
            return []
        self._last[target, claim.retry] = accounts[-1]
        share = math.ceil(claim.limit / len(accounts))
        # One more, where one is to be avoided.
        parameters = {**kind, "limit": share + 1, "rows": packed(accounts)}
        by_account = [
            [
                Notification(row, attempts + 1, event, body, account, claim.retry)
                for row, attempts, event, body in sorted(from_json(rows))
            ]
            for account, rows in connection.execute(_CLAIMABLE, parameters)
        ]
        rounds = (one for turn in zip_longest(*by_account) for one in turn if one)
        return sorted(rounds, key=lambda one: one.event == claim.avoid)[: claim.limit]

    def free(self) -> None:
        """Have all be due that wait for something, if nobody shares the ledger.

        What a process had claimed that was killed, the next one sends at once.
        """
        if not self._database.shared:
            with self._database.begin() as connection:
                connection.execute(_FREE, {"now": _time(connection, self._clock)})

    def settle(self, settled: Settled) -> Step:
        """Settle what was claimed, and claim nothing."""
        delivered, gave_up = self._database.run(
            lambda connection: _settle(connection, settled, _time(connection, self._clock))
        )
        return Step(delivered, gave_up, [], None)

    def backlog(self, target: str) -> Backlog:
        """Return what a target has not been told yet; what a clock put off for ages is due."""
        with self._database.begin() as connection:
            parameters = {"this_target": target, "now": _time(connection, self._clock)}
            connection.execute(_HASTEN, parameters)
            return Backlog(*connection.execute(_COUNT, parameters).one())

    def forget(self, known: Collection[str]) -> int:
        """Drop what nobody sends any more, once its time is over.

        Args:
            known: the names of the targets that there are.

        Returns:
            How many; at most `CHUNK`.
        """
        with self._database.begin() as connection:
            gone = (
                select(_columns.id)
                .where(
                    _columns.target.not_in(list(known)),
                    _columns.give_up_at <= _time(connection, self._clock),
                )
                .limit(CHUNK)
            )
            return connection.execute(delete(notifications).where(_columns.id.in_(gone))).rowcount


def _time(connection: Connection, clock: LedgerClock) -> float:
    """Return the ledger's time, on which exporters that share it agree exactly (Unix time)."""
    if connection.dialect.name == "postgresql":
        return float(connection.execute(_CLOCK).scalar_one())
    return clock.now()


def _settle(connection: Connection, settled: Settled, now: float) -> tuple[int, int]:
    """Return how many were delivered, and how many given up."""
    delivered = gave_up = 0
    if settled.delivered:
        rows = packed(one.id for one in settled.delivered)
        delivered = connection.execute(_DELETE, {"rows": rows}).rowcount
    if settled.refused:
        rows = packed(one.id for one in settled.refused)
        gave_up = connection.execute(_DELETE, {"rows": rows}).rowcount
    if settled.put_off:
        rows = packed(one.id for one, _ in settled.put_off)
        gave_up += connection.execute(_DELETE_OVERDUE, {"rows": rows, "now": now}).rowcount
        rows = packed((one.id, one.attempts, wait) for one, wait in settled.put_off)
        connection.execute(_PUT_OFF, {"rows": rows, "now": now})
    if settled.released:
        rows = packed((one.id, one.attempts) for one in settled.released)
        connection.execute(_RELEASE, {"rows": rows, "now": now})
    return delivered, gave_up
