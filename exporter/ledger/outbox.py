"""The outbox: notifications of finished calls that are not delivered yet.

A notification is written in the transaction that finishes the call, so a crash cannot lose it. It
holds a copy of the call, which may be pruned before the delivery; the target renders it when it
is sent. An exporter claims notifications for some seconds. If it does not record their results
by then, they may be claimed again.

New notifications and retries are claimed separately, each in turns from account to account. Thus
neither retries nor the backlog of another account delay new notifications.

A notification that is given up moves to a table of its own, so that it costs claims nothing; see
`exporter.ledger.notifications`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import islice, zip_longest
from typing import Any, Final, NamedTuple

from pydantic_core import from_json, to_json
from sqlalchemy import (
    Boolean,
    Connection,
    Float,
    Select,
    and_,
    bindparam,
    case,
    delete,
    false,
    func,
    insert,
    literal,
    select,
    true,
    update,
)

from exporter.ledger.calls import label_sets_of
from exporter.ledger.clock import LedgerClock
from exporter.ledger.history import CallEvent, EventKind, add_history
from exporter.ledger.json_rows import (
    ROWS,
    fetch_json,
    insert_rows,
    is_given,
    item,
    select_json,
    to_json_rows,
)
from exporter.ledger.json_rows import field as field_of
from exporter.ledger.schema import given_up_notifications, notifications
from exporter.ledger.types import BATCH_SIZE, FinishedCall

LONGEST_WAIT: Final = 1_200.0
"""Maximum seconds until a retry. A longer wait means that the clock was set back; the notification
is due now."""

_MAX_ATTEMPTS_SHOWN: Final = 20
"""Attempts whose new answers are added to the history of the call: answers may change each time."""

_columns: Final = notifications.c
_target: Final = _columns.target == bindparam("this_target")
_now: Final = bindparam("now", type_=Float())

_INSERT: Final = insert_rows(
    *_columns["target", "account", "call", "call_id"],
    give_up_at=_now + field_of(4, _columns.give_up_at),
    queued_at=_now,
    due_at=_now,
    attempts=literal(0),
    retry=false(),
)

_of_kind: Final = and_(_target, _columns.retry == bindparam("retry", type_=Boolean()))
# A loose index scan: the cost depends on the number of accounts, not of notifications.
_first: Final = (
    select(func.min(_columns.account).label("account"))
    .where(_of_kind)
    .cte("pending", recursive=True)
)
_pending: Final = _first.union_all(
    select(
        select(func.min(_columns.account))
        .where(_of_kind, _columns.account > _first.c.account)
        .scalar_subquery()
    ).where(_first.c.account.is_not(None))
)
_ACCOUNTS: Final = select_json(_pending.c.account).where(
    # Not EXISTS: PostgreSQL would turn it into a join that reads all due notifications.
    select(func.min(_columns.due_at))
    .where(_of_kind, _columns.account == _pending.c.account)
    .scalar_subquery()
    <= _now
)
_due: Final = (
    select(*_columns["id", "attempts", "call", "call_id", "answer"])
    .where(_of_kind, _columns.account == item(_columns.account), _columns.due_at <= _now)
    .order_by(_columns.due_at)
    .limit(bindparam("limit"))
    # Exporters that claim at the same time get different notifications.
    .with_for_update(skip_locked=True)
    .correlate(ROWS)
    .subquery()
)
_DUE: Final = select(select_json(*_due.c).scalar_subquery()).select_from(ROWS)
_IS_GIVEN: Final = is_given(_columns.id)
_CLAIM: Final = (
    update(notifications)
    .where(_IS_GIVEN)
    .values(
        due_at=_now + bindparam("lease", type_=Float()),
        attempts=_columns.attempts + 1,
        claimed=true(),
    )
)
# False if it was claimed again.
_IS_STILL_MINE: Final = and_(
    _columns.id == field_of(0, _columns.id),
    _columns.attempts == field_of(1, _columns.attempts),
)
_again_at: Final = _now + field_of(2, _columns.due_at)
_PUT_OFF: Final = (
    update(notifications)
    .where(_IS_STILL_MINE)
    .values(
        # The last attempt is at the deadline.
        due_at=case((_again_at < _columns.give_up_at, _again_at), else_=_columns.give_up_at),
        retry=true(),
        claimed=false(),
        answer=field_of(3, _columns.answer),
    )
)
_RELEASE: Final = (
    update(notifications)
    .where(_IS_STILL_MINE)
    .values(due_at=_now, attempts=_columns.attempts - 1, claimed=false())
)
_RELEASE_ALL: Final = update(notifications).where(_columns.due_at > _now).values(due_at=_now)
_DELETE: Final = delete(notifications).where(_IS_GIVEN)
_NEXT: Final = select(func.min(_columns.due_at)).where(_target)
_COUNT: Final = select(func.count(), func.min(_columns.queued_at)).where(_target)
_CUT_WAITS: Final = (
    update(notifications).where(_target, _columns.due_at > _now + LONGEST_WAIT).values(due_at=_now)
)


def _locked(query: Select[Any], *, skip: bool = False) -> Select[Any]:  # Any: of columns
    """Lock the notifications that a query finds; with `skip`, those that are not locked."""
    found = query.with_for_update(of=notifications, skip_locked=skip).subquery()
    return select_json(*found.c)


_found = select(*_columns["id", "target", "call_id", "answer"])
_mine = _found.join_from(ROWS, notifications, _IS_STILL_MINE)
_MINE: Final = _locked(_mine)
_MINE_OVERDUE: Final = _locked(_mine.where(_columns.give_up_at <= _now))
_overdue: Final = _found.where(
    _columns.give_up_at <= _now,
    _columns.due_at <= _now,  # not claimed
).limit(BATCH_SIZE)
_OVERDUE: Final = _locked(
    _overdue.where(
        _target,
        _columns.give_up_at > _now - bindparam("longest", type_=Float()),
        _columns.give_up_at <= _now - bindparam("shortest", type_=Float()),
    ),
    skip=True,
)
_kept: Final = given_up_notifications.c
_GIVE_UP: Final = insert(given_up_notifications).from_select(
    ["id", "target", "account", "call", "call_id", "attempts", "answer", "gave_up_at"],
    select(
        *_columns["id", "target", "account", "call", "call_id", "attempts"],
        field_of(1, _columns.answer),
        _now,
    ).join_from(ROWS, notifications, _columns.id == field_of(0, _columns.id)),
)
_DELETE_GIVEN_UP: Final = delete(given_up_notifications).where(is_given(_kept.id))


@dataclass(frozen=True, slots=True)
class Route:
    """Selects the finished calls that a target is notified of. None matches any value."""

    target: str
    give_up_after: float  # seconds after the finish of a call, until its notification is given up
    accounts: Collection[str] | None = None
    results: Collection[str] | None = None
    statuses: Collection[str] | None = None
    # Accepted values by label name; a missing label has the empty value.
    labels: Mapping[str, Collection[str]] = field(default_factory=dict)

    def matches(self, call: FinishedCall) -> bool:
        return (
            (self.accounts is None or call.account in self.accounts)
            and (self.results is None or call.result in self.results)
            and (self.statuses is None or call.status in self.statuses)
            and all(call.labels.get(name, "") in values for name, values in self.labels.items())
        )


class Notification(NamedTuple):
    """A claimed notification; `id` is its row."""

    id: int
    attempts: int  # number of claims, including this one; identifies this claim
    retry: bool  # an earlier attempt failed
    call: FinishedCall
    call_id: int | None  # the row of the call; None if an older exporter has written it
    answer: str | None  # the last one of the target


class Claim(NamedTuple):
    """A request for retries or for new notifications."""

    retry: bool
    limit: int
    each: int  # maximum per account; accounts have equal shares
    full: Collection[str] = ()  # accounts to leave out


class DeliveryAction(Enum):
    """What to do with a claimed notification."""

    DONE = auto()
    GIVE_UP = auto()
    RETRY = auto()  # after a back-off; given up if its deadline has passed
    RELEASE = auto()  # not attempted; due at once


class DeliveryResult(NamedTuple):
    """The result of a claimed notification, to be recorded."""

    notification: Notification
    action: DeliveryAction
    wait: float = 0.0  # seconds to the next attempt
    answer: str | None = None  # outcome and problem of a failed attempt; contains no secrets


class ClaimResult(NamedTuple):
    """The outcome of `Outbox.claim`."""

    delivered: int  # newly recorded
    gave_up: int
    claimed: list[Notification]
    due_in: float | None  # seconds until the next one is due; None if there is none


class Outbox:
    """Statements about notifications. They run in the caller's transaction."""

    def __init__(self, clock: LedgerClock) -> None:
        self._clock = clock
        self.routes: Collection[Route] = ()
        self._history = True
        self._last: dict[tuple[str, bool], str] = {}  # the account that had the last turn

    def set_routes(self, routes: Collection[Route]) -> None:
        """Change the routes of calls that finish from now on."""
        self.routes = routes

    def set_history(self, *, on: bool) -> None:
        """Turn the history of calls on or off; see `exporter.ledger.history`."""
        self._history = on

    def add(
        self, connection: Connection, finished: Sequence[tuple[int, int, FinishedCall]]
    ) -> frozenset[str]:
        """Write the notifications of finished calls, in the transaction that finishes them.

        `finished` are the calls without labels, each after the rows of its label set and of itself.
        Return the targets with new notifications.
        """
        if not (self.routes and finished):
            return frozenset()
        labels = label_sets_of(connection, {row for row, *_ in finished})
        new, now = list[tuple[str, str, str, int, float]](), self._clock.now()
        for row, call_id, call in finished:
            event = call._replace(labels=labels[row])
            matching = [route for route in self.routes if route.matches(event)]
            content = to_json(event._asdict()).decode() if matching else ""
            new += [
                (route.target, event.account, content, call_id, route.give_up_after)
                for route in matching
            ]
        for start in range(0, len(new), BATCH_SIZE):
            rows = to_json_rows(new[start : start + BATCH_SIZE])
            connection.execute(_INSERT, {"rows": rows, "now": now})
        return frozenset(target for target, *_ in new)

    def claim(
        self,
        connection: Connection,
        target: str,
        results: Sequence[DeliveryResult],
        claims: Sequence[Claim] = (),
        limit: int = 0,
        lease: float = 0.0,
    ) -> ClaimResult:
        """Record results, and claim up to `limit` notifications of a target for `lease` seconds."""
        now = self._clock.now()
        delivered, gave_up = self._record(connection, target, results, now)
        claimed: list[Notification] = []
        for claim in claims:
            room = min(claim.limit, limit - len(claimed))
            if room > 0 and (due := self._due(connection, target, claim, room, now)):
                rows = to_json_rows(one.id for one in due)
                connection.execute(_CLAIM, {"rows": rows, "now": now, "lease": lease})
                claimed += due
        due_at = connection.scalar(_NEXT, {"this_target": target})
        due_in = None if due_at is None else max(0.0, due_at - now)
        return ClaimResult(delivered, gave_up, claimed, due_in)

    def _due(
        self, connection: Connection, target: str, claim: Claim, limit: int, now: float
    ) -> list[Notification]:
        """Return due notifications in turns, starting after the account that had the last turn."""
        kind = {"this_target": target, "retry": claim.retry, "now": now}
        last = self._last.get((target, claim.retry), "")
        due = {name for (name,) in fetch_json(connection, _ACCOUNTS, **kind)}
        accounts = sorted(due.difference(claim.full), key=lambda name: (name <= last, name))[:limit]
        if not accounts:
            return []
        self._last[target, claim.retry] = accounts[-1]
        share = min(claim.each, math.ceil(limit / len(accounts)))
        parameters = {**kind, "limit": share, "rows": to_json_rows(accounts)}
        by_account = [
            [
                Notification(row, attempts + 1, claim.retry, FinishedCall(**from_json(call)), *rest)
                for row, attempts, call, *rest in sorted(from_json(rows))
            ]
            for rows in connection.scalars(_DUE, parameters)
        ]
        rounds = (one for turn in zip_longest(*by_account) for one in turn if one)
        return list(islice(rounds, limit))

    def give_up(self, connection: Connection, target: str, shortest: float, longest: float) -> int:
        """Give up at most `BATCH_SIZE` notifications that are overdue, except claimed ones.

        Their deadline passed at least `shortest` and less than `longest` seconds ago. Return how
        many there were.
        """
        given = {"this_target": target, "shortest": shortest, "longest": longest}
        return self._give_up(connection, _OVERDUE, self._clock.now(), {}, **given)

    def release_all(self, connection: Connection) -> None:
        """Make all notifications due, also those that a killed process had claimed.

        Does nothing if the ledger can be shared: another exporter may have claimed them.
        """
        if connection.dialect.name == "sqlite":
            connection.execute(_RELEASE_ALL, {"now": self._clock.now()})

    def backlog(self, connection: Connection, target: str) -> tuple[int, float | None]:
        """Return the number of pending notifications of a target, and the Unix time of the oldest.

        Notifications that wait too long because the clock was set back become due.
        """
        parameters = {"this_target": target, "now": self._clock.now()}
        connection.execute(_CUT_WAITS, parameters)
        pending, oldest = connection.execute(_COUNT, parameters).one()
        return pending, None if oldest is None else oldest - self._clock.ahead

    def give_up_others(self, connection: Connection, targets: Collection[str]) -> int:
        """Give up overdue notifications of all but `targets`; return how many.

        Gives up at most `BATCH_SIZE`.
        """
        others = _overdue.where(_columns.target.not_in(list(targets)))
        return self._give_up(connection, _locked(others, skip=True), self._clock.now(), {})

    def _record(
        self, connection: Connection, target: str, results: Sequence[DeliveryResult], now: float
    ) -> tuple[int, int]:
        """Record results; return how many were delivered, and how many were given up."""
        rows = defaultdict[DeliveryAction, list[tuple[int, int, float, str | None]]](list)
        for one, action, wait, answer in results:
            rows[action].append((one.id, one.attempts, wait, answer))
        delivered = gave_up = 0
        if done := [row for row, *_ in rows[DeliveryAction.DONE]]:
            given = {"rows": to_json_rows(done)}
            delivered = connection.execute(_DELETE, given).rowcount
            if delivered < len(done):
                # Results that are late because the ledger failed: some may have been given up.
                delivered += connection.execute(_DELETE_GIVEN_UP, given).rowcount
        for query, action in (
            (_MINE, DeliveryAction.GIVE_UP),
            (_MINE_OVERDUE, DeliveryAction.RETRY),
        ):
            if claims := rows[action]:
                answers = {row: answer for row, *_, answer in claims}
                gave_up += self._give_up(connection, query, now, answers, rows=to_json_rows(claims))
        for statement, action in (
            (_PUT_OFF, DeliveryAction.RETRY),
            (_RELEASE, DeliveryAction.RELEASE),
        ):
            if claims := rows[action]:
                connection.execute(statement, {"rows": to_json_rows(claims), "now": now})
        if self._history:
            add_history(connection, _events(target, results, now))
        return delivered, gave_up

    def _give_up(
        self,
        connection: Connection,
        query: Select[Any],  # Any: of columns
        now: float,
        answers: Mapping[int, str | None],
        **parameters: object,
    ) -> int:
        """Give up the notifications that a query finds and locks; return how many.

        `answers` are the last answers that are not in the ledger yet, by row.
        """
        found = [
            (row, answers.get(row) or answer, target, call)
            for row, target, call, answer in fetch_json(connection, query, now=now, **parameters)
        ]
        if found:
            connection.execute(_GIVE_UP, {"rows": to_json_rows(found), "now": now})
            connection.execute(_DELETE, {"rows": to_json_rows(row for row, *_ in found)})
        if self._history:
            events = (
                CallEvent(call, now, EventKind.GAVE_UP, target, answer)
                for _, answer, target, call in found
                if call is not None
            )
            add_history(connection, events)
        return len(found)


def _events(target: str, results: Sequence[DeliveryResult], now: float) -> Iterator[CallEvent]:
    """Yield the events of calls: deliveries, and new answers in the first failed attempts."""
    for one, action, _, answer in results:
        if one.call_id is None:
            continue
        if action is DeliveryAction.DONE:
            yield CallEvent(one.call_id, now, EventKind.DELIVERED, target)
        elif (
            action is DeliveryAction.RETRY
            and answer != one.answer
            and one.attempts <= _MAX_ATTEMPTS_SHOWN
        ):
            yield CallEvent(one.call_id, now, EventKind.FAILED, target, answer)
