"""What exporters that share a ledger tell each other. Blocking, as `exporter.ledger.store` is.

All times are the server's: the clocks of the exporters may differ.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, TextClause, select, text

from exporter.calls import CallState, WatchedCall
from exporter.ids import ReferenceId
from exporter.ledger.bulk import packed
from exporter.ledger.engine import Database
from exporter.ledger.listing import label_sets_of
from exporter.ledger.records import CHUNK, Changes, Claimed, SeriesChanges, StoredCall
from exporter.ledger.schema import accounts
from exporter.ledger.taking import row_of
from exporter.ledger.totals import Cell, Total

_KEEP_ENDED: Final = 86_400
"""Seconds for which an exporter that has ended is remembered: one that stood still in the middle of
a step finds out that the others have gone on."""

MESSAGES: Final = 10 * CHUNK
"""Messages that are heard at a time: whoever lets go of a million calls writes as many."""

_CLOCK: Final = "extract(epoch FROM clock_timestamp())::float8"
_IDS: Final = "(SELECT (value #>> '{}')::bigint FROM json_array_elements(CAST(:rows AS json)))"
_XMIN, _XMAX = (
    f"CAST(CAST(pg_snapshot_{end}(pg_current_snapshot()) AS TEXT) AS BIGINT)"
    for end in ("xmin", "xmax")
)


def _sql(statement: str) -> TextClause:
    return text(statement.format(clock=_CLOCK, ids=_IDS, keep=_KEEP_ENDED, xmin=_XMIN, xmax=_XMAX))


# What is lost of it in a crash of the server is as old as the crash, and means nothing any more.
_LIGHTLY: Final = text("SET LOCAL synchronous_commit = off")

_JOIN: Final = _sql(
    "INSERT INTO replicas (name, peers, held, heartbeat, beat_at) "
    "VALUES (:name, '', 0, :heartbeat, {clock}) RETURNING id"
)
_BEAT: Final = _sql(
    "UPDATE replicas SET held = :held, peers = :peers, heartbeat = :heartbeat, beat_at = {clock} "
    "WHERE id = :replica AND ended_at IS NULL"
)
# Whose row is locked is beating now; and two that were silent do not wait for each other. Nobody is
# ended by one that was silent itself: where its beat was held up, so were those of the others.
_END_SILENT: Final = _sql(
    """
    UPDATE replicas SET ended_at = {clock} WHERE id IN (
        SELECT id FROM replicas
        WHERE ended_at IS NULL AND beat_at < {clock} - heartbeat - :late AND id <> :replica
        AND EXISTS (
            SELECT FROM replicas r WHERE r.id = :replica AND r.beat_at >= {clock} - r.heartbeat
        )
        FOR UPDATE SKIP LOCKED
    )
    """
)
_LEAVE: Final = _sql(
    "UPDATE replicas SET ended_at = {clock} WHERE id = :replica AND ended_at IS NULL"
)
_FORGET_ENDED: Final = (
    # What it polled is claimed by its number, which may be late: when an account is polled again.
    _sql(
        "DELETE FROM replicas r WHERE ended_at < {clock} - {keep} AND NOT EXISTS "
        "(SELECT FROM calls c WHERE c.replica_id = r.id AND c.result IS NULL)"
    ),
    text(
        "DELETE FROM replica_messages m WHERE NOT EXISTS "
        "(SELECT FROM replicas r WHERE r.id = m.replica_id AND r.ended_at IS NULL)"
    ),
)
_MEMBERS: Final = text("SELECT id, peers, held, ended_at IS NULL AS alive FROM replicas")
_HEARD: Final = _sql("DELETE FROM replica_messages WHERE id IN {ids}")
_MESSAGES: Final = text(
    "SELECT id, call_id, message FROM replica_messages WHERE replica_id = :replica "
    "ORDER BY id LIMIT :most"
)
# Somebody stands still in the middle of it: to beat and to claim is not to wait for that.
_SHORTLY: Final = text("SET LOCAL lock_timeout = '1s'")
# However little the server knows of the table yet, it is not to read all of it.
_BY_INDEX: Final = text("SET LOCAL enable_seqscan = off")
# Chosen once, however the rest is done: each time, others would be chosen.
_CLAIM: Final = """
    WITH chosen AS MATERIALIZED (
        SELECT c.id FROM calls c
        WHERE c.result IS NULL AND c.account_id = ANY(:accounts) AND c.{held}
        AND c.canary_run_id IS NULL
        AND EXISTS (SELECT FROM replicas r WHERE r.id = :replica AND r.ended_at IS NULL)
        LIMIT :most FOR NO KEY UPDATE OF c SKIP LOCKED
    )
    UPDATE calls c SET replica_id = :replica FROM chosen WHERE c.id = chosen.id
    RETURNING
        c.id, c.account_id,
        coalesce((
            SELECT into_id FROM folded_labels f
            WHERE f.label_set_id = c.label_set_id AND f.account_id = c.account_id
        ), c.label_set_id),
        c.reference_id, c.first_watched, c.state, c.state_since
"""
_CLAIM_FREE: Final = text(_CLAIM.format(held="replica_id IS NULL"))
_CLAIM_ENDED: Final = text(_CLAIM.format(held="replica_id = ANY(:ended)"))
_RELEASE: Final = _sql(
    "UPDATE calls SET replica_id = NULL WHERE id IN {ids} AND replica_id = :replica"
)
_RELEASE_ACCOUNT: Final = text(
    """
    UPDATE calls SET replica_id = NULL WHERE id IN (
        SELECT c.id FROM calls c JOIN accounts a ON a.id = c.account_id
        WHERE c.result IS NULL AND a.name = :name AND c.replica_id = :replica LIMIT :most
    )
    """
)
# Every transaction before `xmin` has ended. One after the newest that is seen, and so on the disk,
# may be lost in a crash of the server, and its number be given away again. Where a dump of another
# server was restored, there are numbers that were not given away yet.
# What is read after it is of one moment: a total that is moved is never read in both places.
_ONE_MOMENT: Final = text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
_SINCE: Final = _sql(
    "SELECT least({xmin}, 1 + coalesce(max(changed_in), 0)) FROM totals WHERE changed_in < {xmax}"
)
_CHANGED: Final = _sql(
    """
    SELECT a.name, t.label_set_id, t.total, t.cell, t.value
    FROM totals t JOIN accounts a ON a.id = t.account_id
    WHERE t.changed_in >= :since AND t.changed_in < {xmax}
    """
)
_NEW_SETS: Final = _sql(
    """
    SELECT a.name, t.label_set_id, t.begins FROM (
        SELECT account_id, label_set_id, false AS begins FROM folded_labels
        WHERE folded_in >= :since AND folded_in < {xmax}
        UNION ALL SELECT account_id, label_set_id, true FROM counted_labels
        WHERE begun_in >= :since AND begun_in < {xmax}
    ) t JOIN accounts a ON a.id = t.account_id
    """
)
# The clock once the rows are locked. Whoever takes calls in refers to the accounts, and need not
# wait for this.
_SLOTS: Final = _sql(
    """
    SELECT id, name, coalesce(next_slot, 0), {clock} FROM (
        SELECT id, name, next_slot FROM accounts WHERE name = ANY(:names)
        ORDER BY id FOR NO KEY UPDATE
    ) held
    """
)
_TAKE_SLOTS: Final = text(
    """
    UPDATE accounts SET next_slot = (value ->> 1)::float8
    FROM json_array_elements(CAST(:rows AS json)) WHERE id = (value ->> 0)::integer
    """
)


class Member(NamedTuple):
    """An exporter that shares the ledger, or did.

    Attributes:
        id: its row.
        peers: the same for those that poll the same accounts.
        held: how many calls it polls, as it last said.
        alive: it has not ended.
    """

    id: int
    peers: str
    held: int
    alive: bool


class Wish(NamedTuple):
    """Requests that an account is to be asked with, `apart` seconds from each other."""

    account: str
    slots: int
    apart: float


class Grant(NamedTuple):
    """When the first of the requests may be sent that were wished for.

    Attributes:
        first: when, by the server's clock (Unix time).
        now: what the server's clock said then.
    """

    account: str
    first: float
    now: float


class Sharing:
    """The statements, on an open database. Each method is one short transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def join(self, name: str, heartbeat: float) -> int:
        """Become one of the exporters; returns its number, which nobody had before."""
        with self._database.begin() as connection:
            which = {"name": name, "heartbeat": heartbeat}
            return int(connection.execute(_JOIN, which).scalar_one())

    def leave(self, replica: int) -> None:
        """End; the others take over what it polled."""
        with self._database.begin() as connection:
            connection.execute(_LEAVE, {"replica": replica})

    def beat(
        self, replica: int, peers: str, held: int, heartbeat: float, late: float | None
    ) -> list[Member] | None:
        """Tell the others that this exporter is alive, and see who is.

        Args:
            replica: its number.
            peers: see `Member`.
            held: how many calls it polls.
            heartbeat: for how many seconds it may be silent.
            late: declare those dead who have been silent for so many seconds longer than they
                may, unless this one has been, too; None for nobody.

        Returns:
            All exporters; None where the others have declared this one dead.
        """
        with self._database.begin() as connection:
            connection.execute(_LIGHTLY)
            if late is not None:
                connection.execute(_END_SILENT, {"replica": replica, "late": late})
            mine = {"replica": replica, "peers": peers, "held": held, "heartbeat": heartbeat}
            if not connection.execute(_BEAT, mine).rowcount:
                return None
            return [Member(*row) for row in connection.execute(_MEMBERS)]

    def forget_ended(self) -> None:
        """Forget exporters that ended long ago, and what they were told."""
        with self._database.begin() as connection:
            for statement in _FORGET_ENDED:
                connection.execute(statement)

    def claim(self, replica: int, names: Collection[str], ended: Collection[int]) -> Claimed:
        """Take over up to `CHUNK` calls of accounts that nobody polls.

        Args:
            replica: who is going to poll them.
            names: of accounts.
            ended: exporters that have ended.
        """
        found: list[StoredCall] = []
        with self._database.begin() as connection:
            connection.execute(_BY_INDEX)
            wanted = {row: name for row, name in _names(connection).items() if name in names}
            for statement in (_CLAIM_FREE, _CLAIM_ENDED) if ended else (_CLAIM_FREE,):
                rows = connection.execute(
                    statement,
                    {
                        "replica": replica,
                        "accounts": list(wanted),
                        "ended": list(ended),
                        "most": CHUNK - len(found),
                    },
                )
                found += [
                    StoredCall(wanted[account], labels, _call(row, rest))
                    for row, account, labels, *rest in rows
                ]
            return Claimed(found, label_sets_of(connection, {call.labels for call in found}))

    def release(self, replica: int, rows: Sequence[int]) -> None:
        """Give calls up, by their rows, for others to claim."""
        with self._database.begin() as connection:
            connection.execute(_RELEASE, {"rows": packed(rows), "replica": replica})

    def release_account(self, replica: int, name: str) -> int:
        """Give up to `CHUNK` calls of an account up; returns how many."""
        with self._database.begin() as connection:
            connection.execute(_BY_INDEX)
            which = {"replica": replica, "name": name, "most": CHUNK}
            return connection.execute(_RELEASE_ACCOUNT, which).rowcount

    def messages(self, replica: int, heard: Sequence[int]) -> list[tuple[int, int, str]]:
        """Return what others have said about calls, at most `MESSAGES` at a time.

        Args:
            replica: to whom.
            heard: the numbers of messages that were followed; they are said no more.

        Returns:
            The number of each message, the row of its call, and what was said of it.
        """
        with self._database.begin() as connection:
            if heard:
                connection.execute(_HEARD, {"rows": packed(heard)})
            rows = connection.execute(_MESSAGES, {"replica": replica, "most": MESSAGES})
            return [(number, row, message) for number, row, message in rows]

    def changes(self, since: int, known: Collection[int]) -> Changes:
        """Return the totals that have changed.

        Args:
            since: a number of `Changes` or `Snapshot`.
            known: rows of sets of labels that need not be returned.
        """
        with self._database.begin() as connection:
            # Every transaction before that one has ended by now: read first, it misses nothing.
            now = snapshot_number(connection)
            # Less than before: the server has lost transactions, as at a failover. What is shown
            # stays, where it is more.
            lost = since > now
            since = 0 if lost else since
            new_sets = [] if lost else connection.execute(_NEW_SETS, {"since": since}).all()
            series = SeriesChanges([], [])
            for name, labels, begins in new_sets:
                (series.begun if begins else series.evicted).append((name, labels))
            changed = {
                Cell(name, labels, Total(total), cell): value
                for name, labels, total, cell, value in connection.execute(
                    _CHANGED, {"since": since}
                )
            }
            new = {cell.labels for cell in changed}.union(row for _, row in series.begun)
            new_labels = label_sets_of(connection, new.difference(known))
            return Changes(series, changed, new_labels, now)

    def reserve(self, wishes: Sequence[Wish], lead: float) -> list[Grant]:
        """Reserve requests to accounts, in turns with all other exporters.

        Args:
            wishes: of distinct accounts; those that the ledger does not know it does from now on.
            lead: seconds until the first may be sent, at least.
        """
        wished = {wish.account: wish for wish in wishes}
        grants, rows = [], []
        with self._database.begin() as connection:
            connection.execute(_LIGHTLY)
            connection.execute(_SHORTLY)
            for name in sorted(wished):
                row_of(connection, accounts.c.name, name)
            for row, name, next_slot, now in connection.execute(_SLOTS, {"names": list(wished)}):
                wish = wished[name]
                # A clock that was set back must not keep everybody waiting.
                queued = min(next_slot, now + 60 + 1000 * wish.apart)
                first = max(queued, now + lead)
                rows.append((row, first + wish.slots * wish.apart))
                grants.append(Grant(name, first, now))
            connection.execute(_TAKE_SLOTS, {"rows": packed(rows)})
        return grants


def snapshot_number(connection: Connection) -> int:
    """Return the number from which on changes are new to whoever reads after this.

    To be called first in a transaction, which reads everything as it is at this moment.
    """
    connection.execute(_ONE_MOMENT)
    return int(connection.execute(_SINCE).scalar_one())


def _names(connection: Connection) -> dict[int, str]:
    return {row.id: row.name for row in connection.execute(select(accounts.c.id, accounts.c.name))}


def _call(row: int, rest: Sequence[Any]) -> WatchedCall:  # Any: texts and numbers
    text_, first_watched, state, since = rest
    return WatchedCall(row, ReferenceId(text_), first_watched, CallState(state), since)
