"""Statements about leases on accounts, and notices from other exporters to the lease holders.

Only for PostgreSQL: an SQLite ledger has one exporter. All times are the server's, because the
clocks of the exporters may differ.

Taking a lease increments its epoch. The holder claims the account's open calls with a lower epoch:
those of the former holder, and those that other exporters add. Notices tell the holder about
changes that other exporters make to its calls.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, TextClause, text

from exporter.calls import WATCHED, CallState
from exporter.ids import ReferenceId
from exporter.ledger.json_rows import to_json_rows
from exporter.ledger.types import BATCH_SIZE, StoredCall

FORGET: Final = "forget"
"""A notice: the call is not open any more."""

POLL_NOW: Final = "poll now"
"""A notice: poll the call now."""

TOTALS: Final = "totals"
"""A notice: the totals of the account have changed."""

_CLOCK: Final = "extract(epoch FROM clock_timestamp())::float8"
_NAMES: Final = "(SELECT json_array_elements_text(CAST(:names AS json)))"
_ROWS: Final = "(SELECT (value #>> '{}')::bigint FROM json_array_elements(CAST(:rows AS json)))"
_MINE: Final = "l.holder = :exporter AND a.name IN {names}"
_HELD: Final = (
    "l.holder = :exporter AND (a.name, l.epoch) IN (SELECT value ->> 0, (value ->> 1)::bigint "
    "FROM json_array_elements(CAST(:held AS json)))"
)


def _sql(statement: str) -> TextClause:
    """Return a statement with its placeholders, such as `{clock}`, expanded."""
    return text(
        statement.replace("{mine}", _MINE)
        .replace("{held}", _HELD)
        .replace("{clock}", _CLOCK)
        .replace("{names}", _NAMES)
        .replace("{rows}", _ROWS)
    )


# The limit of one read: removing a million calls writes a million notices.
_NOTICES: Final = 10 * BATCH_SIZE
# If the server crashes, lost renewals do no harm: they are outdated after the restart.
_ASYNC_COMMIT: Final = text("SET LOCAL synchronous_commit = off")

_ADD_ACCOUNTS: Final = _sql(
    "INSERT INTO accounts (name) SELECT n FROM {names} AS t (n) ORDER BY n ON CONFLICT DO NOTHING"
)
_ADD_LEASES: Final = _sql(
    "INSERT INTO leases (account_id, epoch, expires_at) SELECT id, 0, {clock} FROM accounts "
    "WHERE name IN {names} ORDER BY id ON CONFLICT DO NOTHING"
)
_RENEW_SELF: Final = _sql(
    """
    INSERT INTO exporters (id, name, accounts, expires_at)
    VALUES (:exporter, :name, :wanted, {clock} + :heartbeat)
    ON CONFLICT (id) DO UPDATE SET accounts = excluded.accounts, expires_at = excluded.expires_at
    """
)
_DELETE_DEAD: Final = _sql("DELETE FROM exporters WHERE expires_at < {clock} - 86400")
_EXPORTERS: Final = _sql("SELECT id, name, accounts FROM exporters WHERE expires_at >= {clock}")
_LEASES: Final = _sql(
    "SELECT a.name, l.holder, l.epoch, {clock} - l.expires_at "
    "FROM leases l JOIN accounts a ON a.id = l.account_id"
)
# Lock rows in a fixed order to avoid deadlocks between exporters.
_CHANGE: Final = """
    UPDATE leases l SET {values} FROM (
        SELECT l.account_id, a.name FROM leases l JOIN accounts a ON a.id = l.account_id
        WHERE {condition} ORDER BY l.account_id FOR NO KEY UPDATE OF l
    ) AS a WHERE l.account_id = a.account_id RETURNING a.name, l.epoch
"""


def _change(values: str, condition: str) -> TextClause:
    return _sql(_CHANGE.replace("{values}", values).replace("{condition}", condition))


_RENEW: Final = _change("expires_at = {clock} + :heartbeat", "{mine}")
_TAKE: Final = _change(
    "holder = :exporter, epoch = l.epoch + 1, expires_at = {clock} + :heartbeat",
    "a.name IN {names} AND (l.holder IS NULL OR l.holder = :exporter OR l.expires_at < {clock})",
)
# A new holder reads the current state from the ledger and does not need older notices.
_DELETE_NOTICES: Final = _sql(
    "DELETE FROM notices WHERE account_id IN (SELECT id FROM accounts WHERE name IN {names})"
)
_GIVE_UP: Final = _change("holder = NULL, expires_at = {clock}", "{mine}")
_LEAVE: Final = _sql("DELETE FROM exporters WHERE id = :exporter")
_GIVE_UP_ALL: Final = _change("holder = NULL, expires_at = {clock}", "l.holder = :exporter")

# Without statistics, the planner might choose to scan the whole table.
_BY_INDEX: Final = text("SET LOCAL enable_seqscan = off")
# MATERIALIZED: the subquery skips locked rows, so a second run of it would return other rows.
_CLAIM: Final = _sql(
    """
    WITH chosen AS MATERIALIZED (
        SELECT c.id, l.epoch, a.name FROM leases l JOIN accounts a ON a.id = l.account_id
        CROSS JOIN LATERAL (
            SELECT id FROM calls
            WHERE account_id = l.account_id AND result IS NULL AND epoch < l.epoch
            AND canary_run_id IS NULL
            LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
        ) AS c
        WHERE {held} LIMIT :limit
    )
    UPDATE calls c SET epoch = chosen.epoch FROM chosen WHERE c.id = chosen.id
    RETURNING
        chosen.name,
        coalesce((
            SELECT into_id FROM folded_labels f
            WHERE f.label_set_id = c.label_set_id AND f.account_id = c.account_id
        ), c.label_set_id),
        c.id, c.reference_id, c.first_watched, c.state, c.state_since, c.kind
    """
)
# A transaction that adds calls holds a shared lock on the rows of their accounts.
_LOCK_ACCOUNTS: Final = _sql("SELECT id FROM accounts WHERE name IN {names} ORDER BY id FOR UPDATE")
_ACKNOWLEDGE: Final = _sql("DELETE FROM notices WHERE id IN {rows}")
_READ_NOTICES: Final = _sql(
    "SELECT n.id, a.name, n.call_id, n.notice FROM notices n "
    "JOIN leases l USING (account_id) JOIN accounts a ON a.id = n.account_id "
    "WHERE {held} ORDER BY n.id LIMIT :limit"
)


class Lease(NamedTuple):
    """The right to poll an account."""

    holder: str | None  # the id of an exporter; None if the lease is free
    epoch: int  # how often it was taken
    overdue: float  # seconds since it expired or was given up; negative while it is valid


class Peer(NamedTuple):
    """A live exporter, and the accounts that it wants to poll."""

    name: str
    accounts: frozenset[str]


class Leases(NamedTuple):
    """All leases by account, and all live exporters by id."""

    leases: dict[str, Lease]
    exporters: dict[str, Peer]


class Notice(NamedTuple):
    """A change by another exporter; `call` is None for `TOTALS`."""

    id: int
    account: str
    call: int | None
    notice: str


def add_leases(connection: Connection, names: Collection[str]) -> None:
    """Add a free lease for each account that has none."""
    for statement in (_ADD_ACCOUNTS, _ADD_LEASES):
        connection.execute(statement, {"names": to_json_rows(names)})


def renew_leases(
    connection: Connection,
    exporter: str,
    name: str,
    wanted: Collection[str],
    held: Collection[str],
    time: float,
) -> None:
    """Record that an exporter is alive, and renew its leases for `time` seconds.

    `exporter` is the id of the process, `name` its name for people. It wants to poll the accounts
    `wanted`. The leases on `held` are renewed, unless another exporter took them.
    """
    parameters = {"exporter": exporter, "heartbeat": time}
    accounts = json.dumps(sorted(wanted))
    connection.execute(_ASYNC_COMMIT)
    connection.execute(_RENEW_SELF, {**parameters, "name": name, "wanted": accounts})
    connection.execute(_RENEW, {**parameters, "names": to_json_rows(held)})
    connection.execute(_DELETE_DEAD)


def read_leases(connection: Connection) -> Leases:
    return Leases(
        {name: Lease(*lease) for name, *lease in connection.execute(_LEASES)},
        {
            id_: Peer(name, frozenset(json.loads(accounts)))
            for id_, name, accounts in connection.execute(_EXPORTERS)
        },
    )


def take_leases(
    connection: Connection, exporter: str, names: Collection[str], time: float
) -> dict[str, int]:
    """Take free and expired leases for `time` seconds; return the epochs by account."""
    parameters = {"exporter": exporter, "names": to_json_rows(names), "heartbeat": time}
    taken = {row.name: int(row.epoch) for row in connection.execute(_TAKE, parameters)}
    connection.execute(_DELETE_NOTICES, {"names": to_json_rows(taken)})
    return taken


def give_up_leases(connection: Connection, exporter: str, names: Collection[str]) -> None:
    """Free leases, so that other exporters can take them."""
    connection.execute(_GIVE_UP, {"exporter": exporter, "names": to_json_rows(names)})


def release_leases(connection: Connection, exporter: str) -> None:
    """Free all leases of an exporter that is stopping, and remove it."""
    for statement in (_LEAVE, _GIVE_UP_ALL):
        connection.execute(statement, {"exporter": exporter})


def claim_and_read_notices(
    connection: Connection, exporter: str, held: Mapping[str, int], acknowledged: Sequence[int]
) -> tuple[list[StoredCall], list[Notice]]:
    """Claim up to `BATCH_SIZE` open calls of accounts, and read the notices about them.

    `held` are the epochs of the leases by account. Accounts whose lease the exporter does not hold
    are ignored, and those whose lease it has taken again: it does not poll them yet, so their calls
    would be claimed without being polled. `acknowledged` are ids of handled notices, which are
    deleted; others are returned again.
    """
    parameters = {"exporter": exporter, "held": to_json_rows(held.items())}
    connection.execute(_BY_INDEX)
    claimed = [
        StoredCall(
            account,
            WATCHED[kind](
                row, ReferenceId(name), watched, CallState(state), since, label_set=labels
            ),
        )
        for account, labels, row, name, watched, state, since, kind in connection.execute(
            _CLAIM, {**parameters, "limit": BATCH_SIZE}
        )
    ]
    if acknowledged:
        connection.execute(_ACKNOWLEDGE, {"rows": to_json_rows(acknowledged)})
    found = connection.execute(_READ_NOTICES, {**parameters, "limit": _NOTICES})
    return claimed, [Notice(*row) for row in found]


def wait_for_added_calls(connection: Connection, names: Collection[str]) -> None:
    """Wait until transactions that are adding calls to accounts have ended.

    The server may still commit one whose connection broke.
    """
    connection.execute(_LOCK_ACCOUNTS, {"names": to_json_rows(names)})


# Notices.

_NOTIFY: Final = _sql(
    "INSERT INTO notices (account_id, call_id, notice) SELECT account_id, c.id, :notice "
    "FROM calls c JOIN leases l USING (account_id) "
    "WHERE c.id IN {rows} AND l.holder <> :exporter"
)
_NOTIFY_OF_TOTALS: Final = _sql(
    "INSERT INTO notices (account_id, notice) SELECT a.id, :notice "
    "FROM accounts a JOIN leases l ON l.account_id = a.id "
    "WHERE a.name IN {names} AND l.holder <> :exporter"
)


def notify_holders(
    connection: Connection, exporter: str | None, rows: Collection[int], notice: str
) -> None:
    """Write notices about calls for the other exporters that hold leases on their accounts.

    `exporter` is None if the ledger is not shared; `notice` is `FORGET` or `POLL_NOW`.
    """
    if exporter and rows:
        parameters = {"exporter": exporter, "rows": to_json_rows(rows), "notice": notice}
        connection.execute(_NOTIFY, parameters)


def notify_of_totals(
    connection: Connection, exporter: str | None, accounts: Collection[str]
) -> None:
    """Notify the other exporters that hold leases on accounts that their totals have changed.

    Call this while the labels of the accounts are locked, for instance by `keep_labels`. A new
    holder waits for that lock before it reads the totals, so it cannot miss the change.
    """
    if exporter and accounts:
        parameters = {"exporter": exporter, "names": to_json_rows(accounts), "notice": TOTALS}
        connection.execute(_NOTIFY_OF_TOTALS, parameters)
