"""What polls found out, written in one transaction with what it adds to the totals."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, Connection, and_, func, or_, select, update

from exporter.calls import CallState, Finished, Key, PollAgain, Result, Status
from exporter.ledger.json_rows import fetch_json, field, item, json_param, select_json, to_json_rows
from exporter.ledger.labels import COUNTED_AS, FOLDED, add_totals, keep_labels
from exporter.ledger.notices import FORGET, notify_holders, notify_of_totals
from exporter.ledger.outbox import CallFinished, Outbox
from exporter.ledger.schema import UNFINISHED_ROW, accounts, calls, folded_labels
from exporter.ledger.totals import TotalKey, additions, price_added
from exporter.ledger.types import DELETED, Committed, Observation

_rows: Final = json_param("rows")

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
    .where(calls.c.id.in_(select(item(_rows, calls.c.id))), UNFINISHED_ROW)
    .order_by(calls.c.id)
    .with_for_update(of=calls, key_share=True)
    .subquery()
)
_ACCOUNT_OF: Final = select(accounts.c.id, accounts.c.name).join_from(calls, accounts)
_SET_OF: Final = select(COUNTED_AS).select_from(calls).outerjoin(folded_labels, FOLDED)
_UNFINISHED: Final = select_json(*_HELD.c)


def _row_is_given() -> ColumnElement[bool]:
    return and_(calls.c.id == field(_rows, 0, calls.c.id), UNFINISHED_ROW)


def _given(*columns: Column[Any]) -> dict[str, ColumnElement[Any]]:  # Any: of a column's type
    """Return new values for columns: the fields after the row's number, in this order."""
    return {column.name: field(_rows, n, column) for n, column in enumerate(columns, 1)}


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
    held = {row: rest for row, *rest in fetch_json(connection, _UNFINISHED, rows=to_json_rows(ids))}
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
        finished.append(_finish(call.id, found, at))
        counted_as, labels, price, canary, account_id, account = held[call.id]
        if canary is not None:
            canaries.add(call.id)
            continue
        event = CallFinished(
            account,
            call.reference_id,
            found.result,
            found.status,
            found.duration,
            found.key,
            {},
            call.first_watched - ahead,
            at - ahead,
        )
        events.append((labels, event))
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


def _finish(row: int, finished: Finished, at: float) -> tuple[Any, ...]:  # Any: of columns
    result, status = _TEXT[finished.result], _TEXT[finished.status]
    key = None if finished.key is None else _TEXT[finished.key]
    return row, result, status, finished.duration, key, at
