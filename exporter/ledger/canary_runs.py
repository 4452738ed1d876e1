"""Statements about canary runs. They run in the caller's transaction.

A run is one row per canary and due time, written before the request is sent: no other exporter may
place that call. Once the provider has accepted the call, it is an ordinary call with a
`canary_run_id`, except that it is not counted in the totals. The first exporter that reads the
result of the call from the ledger ends the run.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from enum import Enum, StrEnum, auto
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, and_, delete, func, insert, or_, select, text, update

from exporter.ids import ReferenceId, reference_key
from exporter.ledger.calls import row_of
from exporter.ledger.labels import canonical
from exporter.ledger.schema import (
    accounts,
    calls,
    canaries,
    canary_runs,
    canary_totals,
    label_sets,
)
from exporter.ledger.types import DELETED

_KEEP: Final = 2 * 86_400.0
"""Minimum retention of runs, in seconds; `max_per_day` needs them."""


class CanaryResult(StrEnum):
    """The result of a canary run: the label `result` of `esms_canary_runs_total`."""

    SUCCESS = "success"  # the call finished as expected
    FAILURE = "failure"  # the call finished otherwise
    LATE = "late"  # placed, and not finished in time
    REFUSED = "refused"  # the provider refused to place it
    UNREACHABLE = "unreachable"  # no connection to the provider: not placed
    UNSURE = "unsure"  # not known whether it was placed
    MISSED = "missed"  # not placed in time
    LIMITED = "limited"  # `max_per_day` was reached


_NOT_PLACED: Final = (CanaryResult.LIMITED.value, CanaryResult.MISSED.value)
"""Results that do not depend on the provider: `esms_canary_success` does not change."""

# A callback may have added the call before.
_INSERT_CALL: Final = text(
    "INSERT INTO calls (account_id, normalized_id, reference_id, label_set_id, pushed, "
    "first_watched, state, state_since, canary_run_id) "
    "VALUES (:account, :key, :reference_id, :labels, TRUE, :now, 'new', :now, :run) "
    "ON CONFLICT (account_id, normalized_id) DO UPDATE SET canary_run_id = excluded.canary_run_id"
)
_ADD: Final = text(
    "INSERT INTO canary_totals (canary_id, result, runs) VALUES (:canary, :result, :runs) "
    "ON CONFLICT (canary_id, result) DO UPDATE SET runs = canary_totals.runs + excluded.runs"
)

_OPEN: Final = (
    select(
        canary_runs.c.id,
        canaries.c.name,
        *canary_runs.c["account", "expect", "expect_key"],
        *canary_runs.c["started_at", "deadline_at", "accepted_at"],
        *calls.c["id", "reference_id", "result", "status", "key", "finished_at"],
    )
    .join_from(canary_runs, canaries)
    .outerjoin(calls, calls.c.canary_run_id == canary_runs.c.id)
    .where(canary_runs.c.result.is_(None))
    .order_by(canary_runs.c.id)
)


@dataclass(frozen=True, slots=True)
class Intent:
    """A canary call to place; times are Unix times."""

    canary: str
    due_at: int
    account: str
    request_id: str
    expect: str
    expect_key: str | None  # a value of `exporter.calls.Key`
    started_at: float
    deadline_at: float
    limit: int  # of calls on the current day
    day: tuple[float, float]  # start and end of that day
    by_hand: bool = False  # by a command or a button: if the limit is reached, no run is written


class Run(NamedTuple):
    """A run that has not ended; see `exporter.ledger.schema`. Times are Unix times."""

    id: int
    canary: str
    account: str
    expect: str
    expect_key: str | None
    started_at: float
    deadline_at: float
    accepted_at: float | None
    call_id: int | None  # None, as the fields below, until the provider accepts the call
    reference_id: ReferenceId | None
    call_result: str | None  # None until the call has finished; `deleted` if it was deleted
    call_status: str | None
    call_key: str | None
    finished_at: float | None


class NotStarted(Enum):
    """Why a call may not be placed."""

    EXISTS = auto()  # the due time has a run already
    LIMITED = auto()  # the limit of the day is reached


class State(NamedTuple):
    """The state of the configured canaries, and the open runs."""

    canaries: dict[str, Row[Any]]  # each with its last run, by name. Any: of columns
    totals: dict[tuple[str, str], int]  # ended runs, by name and result
    open: list[Run]


def begin(connection: Connection, intent: Intent) -> int | NotStarted:
    """Start a run; return its row, or why the call may not be placed.

    Once this is committed, no other exporter places a call for that due time.
    """
    row = _lock(connection, intent.canary)
    due = canary_runs.c.canary_id == row, canary_runs.c.due_at == intent.due_at
    if connection.scalar(select(canary_runs.c.id).where(*due)) is not None:
        return NotStarted.EXISTS
    placed = select(func.count()).where(
        canary_runs.c.canary_id == row,
        canary_runs.c.due_at >= intent.day[0],
        canary_runs.c.due_at < intent.day[1],
        or_(canary_runs.c.result.is_(None), canary_runs.c.result.not_in(_NOT_PLACED)),
    )
    limited = (connection.scalar(placed) or 0) >= intent.limit
    if limited and intent.by_hand:
        return NotStarted.LIMITED
    values: dict[str, object] = {
        name: value
        for name, value in asdict(intent).items()
        if name not in {"canary", "limit", "day", "by_hand"}
    }
    if limited:
        values |= {"result": CanaryResult.LIMITED.value, "ended_at": intent.started_at}
        _count(connection, row, CanaryResult.LIMITED)
    adding = insert(canary_runs).values(canary_id=row, **values).returning(canary_runs.c.id)
    found = int(connection.execute(adding).scalar_one())
    return NotStarted.LIMITED if limited else found


def withdraw(connection: Connection, run: int) -> None:
    """Delete a run whose request was not sent."""
    unsent = canary_runs.c.result.is_(None), canary_runs.c.reference_id.is_(None)
    connection.execute(delete(canary_runs).where(canary_runs.c.id == run, *unsent))


def accept(
    connection: Connection, run: int, reference_id: ReferenceId, now: float, seconds: float
) -> bool:
    """Store that the provider has accepted a call, and add the call.

    `now` is a Unix time, `seconds` the duration of the request. Return whether the run was open.
    """
    accepted = (
        update(canary_runs)
        .where(canary_runs.c.id == run, canary_runs.c.result.is_(None))
        .values(reference_id=reference_id, accepted_at=now)
        .returning(canary_runs.c.account, canary_runs.c.canary_id)
    )
    found = connection.execute(accepted).first()
    if found is None:
        return False
    call = {
        "account": row_of(connection, accounts.c.name, found.account),
        "key": reference_key(reference_id),
        "reference_id": reference_id,
        "labels": row_of(connection, label_sets.c.labels, canonical({})),
        "now": now,
        "run": run,
    }
    connection.execute(_INSERT_CALL, call)
    noted = update(canaries).where(canaries.c.id == found.canary_id)
    connection.execute(noted.values(accepted_seconds=seconds))
    return True


def end(
    connection: Connection,
    run: int,
    result: CanaryResult,
    now: float,
    *,
    status: str | None = None,
    code: str | None = None,
    seconds: float | None = None,
) -> bool:
    """End a run and count its result; return whether the run was open.

    `seconds` is the time from the acceptance of the call to its finish. An open call is deleted.
    """
    ended = (
        update(canary_runs)
        .where(canary_runs.c.id == run, canary_runs.c.result.is_(None))
        .values(result=result.value, status=status, code=code, ended_at=now)
        .returning(canary_runs.c.canary_id)
    )
    canary = connection.execute(ended).scalar()
    if canary is None:
        return False
    _count(connection, canary, result)
    unfinished = calls.c.canary_run_id == run, calls.c.result.is_(None)
    connection.execute(update(calls).where(*unfinished).values(result=DELETED, finished_at=now))
    known: dict[str, object] = {}
    if result.value not in _NOT_PLACED:
        known["success"] = result is CanaryResult.SUCCESS
    if result is CanaryResult.SUCCESS:
        known["last_success_at"] = now
    if seconds is not None:
        known["finished_seconds"] = seconds
    if known:
        connection.execute(update(canaries).where(canaries.c.id == canary).values(known))
    return True


def count_missed(connection: Connection, name: str, seen_until: int, due: Sequence[int]) -> int:
    """Count due times at which no call was placed; return how many.

    `due` are the due times after `seen_until` that are too long ago to place a call. If
    `seen_until` has changed, another exporter has counted them.
    """
    row = _lock(connection, name)
    move = update(canaries).where(canaries.c.id == row, canaries.c.seen_until == seen_until)
    if not connection.execute(move.values(seen_until=due[-1])).rowcount:
        return 0
    started = select(canary_runs.c.due_at).where(
        canary_runs.c.canary_id == row, canary_runs.c.due_at.between(due[0], due[-1])
    )
    missed = len(set(due).difference(connection.scalars(started)))
    if missed:
        _count(connection, row, CanaryResult.MISSED, missed)
    return missed


def read_state(connection: Connection, names: Collection[str], now: float) -> State:
    """Return the state of the configured canaries, and all open runs.

    New canaries begin at the Unix time `now`.
    """
    for name in sorted(names):
        row = row_of(connection, canaries.c.name, name)
        # A start in the future means that the clock was wrong then.
        new = or_(canaries.c.since.is_(None), canaries.c.since > now)
        starting = update(canaries).where(canaries.c.id == row, new)
        connection.execute(starting.values(since=int(now), seen_until=int(now)))
    # Another exporter with another configuration may have reset a canary just now.
    mine = and_(canaries.c.name.in_(list(names)), canaries.c.since.is_not(None))
    own = canary_runs.c.canary_id == canaries.c.id
    last = select(func.max(canary_runs.c.due_at)).where(own).correlate(canaries).scalar_subquery()
    known = select(canaries, canary_runs.c.started_at, canary_runs.c.result).where(mine)
    joined = and_(own, canary_runs.c.due_at == last)
    found = connection.execute(known.outerjoin_from(canaries, canary_runs, joined))
    rows = {row.name: row for row in found}
    query = select(canaries.c.name, canary_totals.c.result, canary_totals.c.runs)
    counted = connection.execute(query.join_from(canary_totals, canaries).where(mine))
    totals = {(name, result): runs for name, result, runs in counted}
    return State(rows, totals, list(map(Run._make, connection.execute(_OPEN))))


def reset_others(connection: Connection, names: Collection[str]) -> None:
    """Reset canaries that are not configured: if they are added again, they start as new ones."""
    others = update(canaries).where(
        canaries.c.name.not_in(list(names)), canaries.c.since.is_not(None)
    )
    connection.execute(others.values(since=None, seen_until=None))


def find(connection: Connection, run: int) -> tuple[str | None, str | None]:
    """Return the result and status of a run; None while it is open."""
    columns = canary_runs.c.result, canary_runs.c.status
    found = connection.execute(select(*columns).where(canary_runs.c.id == run)).first()
    return (found.result, found.status) if found else (None, None)


def prune(connection: Connection, before: float, now: float) -> None:
    """Delete runs that ended before a Unix time, except those of the last two days."""
    connection.execute(delete(canary_runs).where(canary_runs.c.ended_at < min(before, now - _KEEP)))


def _lock(connection: Connection, name: str) -> int:
    """Lock the row of a canary, inserting it if necessary; return its id."""
    row = row_of(connection, canaries.c.name, name)
    connection.execute(select(canaries.c.id).where(canaries.c.id == row).with_for_update())
    return row


def _count(connection: Connection, canary: int, result: CanaryResult, runs: int = 1) -> None:
    connection.execute(_ADD, {"canary": canary, "result": result.value, "runs": runs})
