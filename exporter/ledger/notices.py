"""Notices: what one exporter tells others that share the ledger."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from sqlalchemy import Connection, TextClause, text

from exporter.ledger.json_rows import to_json_rows

FORGET: Final = "forget"
"""A notice: the call is not open any more."""

POLL_NOW: Final = "poll now"
"""A notice: the call is to be polled now."""

TOTALS: Final = "totals"
"""A notice: the totals of the account have changed."""

_CLOCK: Final = "extract(epoch FROM clock_timestamp())::float8"
_NAMES: Final = "(SELECT json_array_elements_text(CAST(:names AS json)))"
_ROWS: Final = "(SELECT (value #>> '{}')::bigint FROM json_array_elements(CAST(:rows AS json)))"
_MINE: Final = "l.holder = :exporter AND a.name IN {names}"


def sql(statement: str) -> TextClause:
    """Return a statement for PostgreSQL, with its abbreviations written out."""
    return text(
        statement.replace("{mine}", _MINE)
        .replace("{clock}", _CLOCK)
        .replace("{names}", _NAMES)
        .replace("{rows}", _ROWS)
    )


_NOTIFY: Final = sql(
    "INSERT INTO notices (account_id, call_id, notice) SELECT account_id, c.id, :notice "
    "FROM calls c JOIN leases l USING (account_id) "
    "WHERE c.id IN {rows} AND l.holder <> :exporter"
)
_NOTIFY_OF_TOTALS: Final = sql(
    "INSERT INTO notices (account_id, notice) SELECT a.id, :notice "
    "FROM accounts a JOIN leases l ON l.account_id = a.id "
    "WHERE a.name IN {names} AND l.holder <> :exporter"
)


def notify_holders(
    connection: Connection, exporter: str | None, rows: Collection[int], notice: str
) -> None:
    """Tell the holders of the accounts of calls, but for this exporter, something about the calls.

    Args:
        connection: in a transaction.
        exporter: the id of this process; None where the ledger is not shared.
        rows: of the calls.
        notice: `FORGET` or `POLL_NOW`.
    """
    if exporter is not None and rows:
        which = {"exporter": exporter, "rows": to_json_rows(rows), "notice": notice}
        connection.execute(_NOTIFY, which)


def notify_of_totals(
    connection: Connection, exporter: str | None, accounts: Collection[str]
) -> None:
    """Tell the holders of accounts, but for this exporter, that their totals have changed.

    Called after `keep_labels` or what else locks the labels of the accounts: who takes a lease
    waits for that before it reads the totals, so it either sees the change or is told of it.
    """
    if exporter is not None and accounts:
        which = {"exporter": exporter, "names": to_json_rows(accounts), "notice": TOTALS}
        connection.execute(_NOTIFY_OF_TOTALS, which)
