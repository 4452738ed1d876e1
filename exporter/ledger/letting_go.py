"""Calls that are not watched any more, and those that are forgotten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from sqlalchemy import (
    Connection,
    Float,
    bindparam,
    delete,
    exists,
    or_,
    select,
    update,
)

from exporter.ledger.bulk import fetch, given, item, listed, packed
from exporter.ledger.leases import FORGET, notify_holders
from exporter.ledger.records import CHUNK, DELETED
from exporter.ledger.schema import UNFINISHED_ROW, accounts, call_sources, calls

_rows: Final = given("rows")

_ACCOUNT: Final = select(accounts.c.name).join_from(calls, accounts)
_UNNAMED: Final = ~exists().where(call_sources.c.call_id == calls.c.id)

# A finished call is remembered from when it was last named. Locked in the order of the rows, as
# everywhere.
_NAMED_UNTIL: Final = (
    update(calls)
    .where(
        calls.c.id.in_(
            select(calls.c.id)
            .where(calls.c.id.in_(select(item(_rows, calls.c.id))), calls.c.result.is_not(None))
            .order_by(calls.c.id)
            .with_for_update(key_share=True)
        )
    )
    .values(named_at=bindparam("now", type_=Float()))
)

_DROPPED: Final = listed(call_sources.c.call_id).where(
    call_sources.c.source == bindparam("source"),
    call_sources.c.call_id.not_in(select(item(_rows, calls.c.id))),
)


def delete_call(connection: Connection, row: int, now: float, exporter: str | None) -> Counter[str]:
    """Watch a call no more; see `Store.delete`. Returns how many of which account it was."""
    unfinished = update(calls).where(calls.c.id == row, calls.c.result.is_(None))
    if not connection.execute(unfinished.values(result=DELETED, finished_at=now)).rowcount:
        return Counter()
    connection.execute(delete(call_sources).where(call_sources.c.call_id == row))
    notify_holders(connection, exporter, [row], FORGET)
    return Counter(connection.scalars(_ACCOUNT.where(calls.c.id == row)))


def dropped(connection: Connection, source: str, rows: set[int]) -> list[int]:
    """Return the calls that a source named, but for some rows."""
    return [row for (row,) in fetch(connection, _DROPPED, source=source, rows=packed(rows))]


def let_go(
    connection: Connection, source: str, rows: Sequence[int], exporter: str | None, now: float
) -> dict[int, str]:
    """Forget that a source names calls, which it did until now (Unix time).

    Returns:
        Those that nothing names any more, with their accounts: they are deleted, and not counted.
    """
    named = call_sources.c.source == source, call_sources.c.call_id.in_(rows)
    connection.execute(delete(call_sources).where(*named))
    connection.execute(_NAMED_UNTIL, {"rows": packed(rows), "now": now})
    left = calls.c.id.in_(rows), UNFINISHED_ROW, calls.c.pushed.is_(False)
    if exporter is not None:
        # Another exporter may be naming one. What it wrote is seen by what is asked after this.
        held = select(calls.c.id).where(*left).order_by(calls.c.id).with_for_update()
        connection.execute(held)
    unnamed = _ACCOUNT.add_columns(calls.c.id).where(*left, _UNNAMED)
    gone = {row: name for name, row in connection.execute(unnamed)}
    notify_holders(connection, exporter, list(gone), FORGET)
    connection.execute(delete(calls).where(calls.c.id.in_(gone)))
    return gone


def prune(connection: Connection, before: float) -> int:
    """Forget calls that finished before a Unix time; see `Store.prune`."""
    old = (
        select(calls.c.id)
        .where(
            calls.c.result.is_not(None),
            calls.c.finished_at < before,
            or_(calls.c.named_at.is_(None), calls.c.named_at < before),
            _UNNAMED,
        )
        .limit(CHUNK)
    )
    return connection.execute(delete(calls).where(calls.c.id.in_(old))).rowcount
