"""Reads and writes of the ledger. Blocking: `exporter.ledger.ledger` calls it from its thread."""

from __future__ import annotations

import json
import math
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Final, TypeVar

from sqlalchemy import (
    Connection,
    bindparam,
    select,
    text,
    true,
)

from exporter.calls import CallState, WatchedCall
from exporter.ids import reference_key
from exporter.ledger.bulk import fetch, given, item, listed, packed
from exporter.ledger.clock import LedgerClock, machine_clocks
from exporter.ledger.commit import commit, set_price
from exporter.ledger.engine import Database
from exporter.ledger.label_limits import NO_LIMITS
from exporter.ledger.labels import COUNTED_AS, FOLDED, limit_labels, prune_labels
from exporter.ledger.leases import notify_holders
from exporter.ledger.letting_go import delete_call, dropped, let_go, prune
from exporter.ledger.listing import RECORD, label_sets_of, records
from exporter.ledger.open_calls import OpenCalls
from exporter.ledger.outbox import Outbox
from exporter.ledger.recent import Past, recent
from exporter.ledger.records import (
    CHUNK,
    CallRecord,
    Committed,
    Labels,
    NewCall,
    Observation,
    Pushed,
    Snapshot,
    StoredCall,
    Taken,
)
from exporter.ledger.schema import (
    accounts,
    call_sources,
    calls,
    counted_labels,
    cursors,
    folded_labels,
    label_sets,
    totals,
)
from exporter.ledger.taking import Sharing, keep, named_lately, push, take
from exporter.ledger.totals import Cell, Total

T = TypeVar("T")

LOADED: Final = 5 * CHUNK
"""Calls that are read at a time when all are: each time, the ledger's thread and the event loop
have to wait for each other."""

# Times that are remembered while all calls are read: of a day and more.
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
_UNFINISHED: Final = listed(*_UNFINISHED_PAGE.c)

_BEGUN: Final = select(accounts.c.name, counted_labels.c.label_set_id).join_from(
    counted_labels, accounts
)

_LABEL_SETS: Final = listed(label_sets.c.id, label_sets.c.labels).where(
    label_sets.c.id.in_(select(item(given("rows"), label_sets.c.id)))
)

_MOVE_CURSOR: Final = text(
    "INSERT INTO cursors (source, query, read_until) VALUES (:source, :query, :read_until) "
    "ON CONFLICT (source) DO UPDATE SET query = excluded.query, read_until = excluded.read_until"
)


class Store:
    """The statements, on an open database. Each method is one transaction, or a few short ones.

    Args:
        database: open.
        clock: tells the time where a method is not told it; the machine's by default.
        outbox: the notifications of calls that finish.

    Attributes:
        shared: whether other exporters may use the ledger at the same time.
        exporter: the id of this process among them; None where the ledger is not shared.
        epochs: of the leases that it holds, by account: what it takes in of these, it polls.
        memory: seconds for which a finished call is remembered.
        limits: of the labels of each account.
    """

    def __init__(
        self,
        database: Database,
        clock: LedgerClock | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        self._database = database
        self._clock = clock or LedgerClock(machine_clocks())
        self.shared = database.shared
        self.exporter = uuid.uuid4().hex if database.shared else None
        self.epochs: dict[str, int] = {}
        self._sharing = Sharing(self.exporter, self.epochs) if self.exporter else None
        self._seconds: dict[float, float] = {}
        self.outbox = outbox or Outbox(database, self._clock)
        self.memory = math.inf
        self.limits = NO_LIMITS
        self._open = OpenCalls(database)
        self.recount = self._open.recount

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def snapshot(self, names: Collection[str] | None = None) -> Snapshot:
        """Return all that the metrics of finished calls are made of, within the limits.

        Args:
            names: of accounts; all by default.
        """
        return self._database.run(partial(self._snapshot, names=names))

    def _snapshot(self, connection: Connection, names: Collection[str] | None) -> Snapshot:
        wanted = true() if names is None else accounts.c.name.in_(list(names))
        known = select(accounts.c.name, accounts.c.id).where(wanted).order_by(accounts.c.name)
        # This waits for whoever changes totals of these accounts, and is still to commit.
        for name, row in connection.execute(known).all():
            limit_labels(connection, name, row, self.limits)
        # Row by row: SQLite would round the values in a text, and a counter would go backwards.
        query = select(
            accounts.c.name,
            totals.c.label_set_id,
            totals.c.total,
            totals.c.cell,
            totals.c.value,
        ).join(accounts)
        found = {
            Cell(name, labels, Total(total), cell): value
            for name, labels, total, cell, value in connection.execute(query.where(wanted))
        }
        begun = {(name, labels) for name, labels in connection.execute(_BEGUN.where(wanted))}
        rows = {row for _, row in begun}.union(cell.labels for cell in found)
        return Snapshot(_label_sets(connection, rows), found, begun)

    def label_sets(self, rows: Collection[int]) -> dict[int, Labels]:
        """Return sets of labels by their rows, oldest first."""
        with self._database.begin() as connection:
            return label_sets_of(connection, rows)

    def unfinished(self, account: str, after: int = 0) -> list[StoredCall]:
        """Return the first `LOADED` of an account's calls that are to be polled, after a row."""
        which = {"account": account, "after": after}
        with self._database.begin() as connection:
            rows = fetch(connection, _UNFINISHED, **which)
        # Calls that were taken in together share their time, and so do those whose state began in
        # the same second, wherever they stand: a tenth of what a call takes.
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

    def sources(self) -> list[str]:
        """Return every source that names a call."""
        with self._database.begin() as connection:
            return list(connection.scalars(select(call_sources.c.source).distinct()))

    def cursor(self, source: str, query: str) -> float | None:
        """Return up to when a query has read; None where another one did, or none.

        Args:
            source: its name.
            query: tells it from others of that name.

        Returns:
            A Unix time, by the clock of the database that was read.
        """
        found = select(cursors.c.read_until).where(
            cursors.c.source == source, cursors.c.query == query
        )
        with self._database.begin() as connection:
            return connection.scalar(found)

    def move_cursor(self, source: str, query: str, read_until: float) -> None:
        """Remember up to when a query has read; see `cursor`."""
        moved = {"source": source, "query": query, "read_until": read_until}
        with self._database.begin() as connection:
            connection.execute(_MOVE_CURSOR, moved)

    def watch(
        self,
        source: str | None,
        new: Sequence[NewCall],
        now: float,
        max_calls: float = math.inf,
    ) -> Taken:
        """Take up to `CHUNK` calls in; those that are known already stay as they are.

        Args:
            source: the configuration or file that names them; None for calls that are pushed.
            new: the calls; of one that stands there twice, the first counts.
            now: Unix time.
            max_calls: how many of an account may be unfinished at a time; those beyond are
                refused.
        """
        room, lately = partial(self._open.room, limit=max_calls), named_lately(self.memory)
        taken = self._database.run(
            lambda connection: take(
                connection, source, new, now, room, self._sharing, lately, self.limits
            )
        )
        self._open.add(taken.added)
        return taken

    def push(
        self, requests: Sequence[Sequence[NewCall]], now: float, max_calls: float = math.inf
    ) -> Pushed:
        """Take the calls of requests in, each request as a whole or not at all.

        Args:
            requests: some `CHUNK` calls, or one request of any size.
            now: Unix time.
            max_calls: how many calls of an account may be unfinished at a time.
        """
        room, lately = partial(self._open.room, limit=max_calls), named_lately(self.memory)
        pushed = self._database.run(
            lambda connection: push(
                connection, requests, now, room, self._sharing, lately, self.limits
            )
        )
        self._open.add(pushed.added)
        return pushed

    def recent(self, since: float, names: Collection[str] | None = None) -> Past:
        """Return what has finished since a Unix time; see `exporter.ledger.recent`."""
        with self._database.begin() as connection:
            return recent(connection, since, names)

    def find(self, account: str, reference_id: str) -> CallRecord | None:
        """Return a call, if it is known; also one that was deleted, with that as its state."""
        query = RECORD.where(
            accounts.c.name == account, calls.c.normalized_id == reference_key(reference_id)
        )
        with self._database.begin() as connection:
            return next(iter(records(connection, query)), None)

    def delete(self, row: int, now: float) -> bool:
        """Watch a call that has not finished no more, whoever names it.

        It is remembered as deleted, for as long as a finished one is: a query that still returns
        it, or a callback that is late, does not bring it back. To hand it over again does, and so
        does a file that names it.

        Args:
            row: of the call.
            now: Unix time.

        Returns:
            Whether there was one.
        """
        deleted = self._database.run(
            lambda connection: delete_call(connection, row, now, self.exporter)
        )
        self._open.remove(deleted)
        return bool(deleted)

    def keep_only(self, source: str, rows: set[int]) -> list[int]:
        """Forget that `source` names any call but `rows`.

        Those that have finished are remembered from now on, however old they are: the source may
        name them again, as a file does that was away for a moment.

        Returns:
            The unfinished calls that nothing names any more: they are deleted, and not counted.
        """
        with self._database.begin() as connection:
            unnamed = dropped(connection, source, rows)
        gone, now = list[int](), self._clock.now()
        for chunk in _chunks(unnamed):
            deleted = self._database.run(
                partial(let_go, source=source, rows=chunk, now=now, exporter=self.exporter)
            )
            self._open.remove(Counter(deleted.values()))
            gone += deleted
        return gone

    def commit(self, observations: Sequence[Observation]) -> Committed:
        """Write what polls found out; see `exporter.ledger.commit`."""
        committed = self._database.run(
            lambda connection: commit(
                connection, observations, self.outbox, self._clock, self.exporter
            )
        )
        self._open.remove(committed.by_account)
        return committed

    def notify(self, row: int, notice: str) -> None:
        """Tell the exporter that polls a call something about it, if it is another one."""
        with self._database.begin() as connection:
            notify_holders(connection, self.exporter, [row], notice)

    def keep(self, row: int) -> bool:
        """Have a call stay whatever files say; returns whether it is there.

        One that has finished is remembered from now on. Nothing is written where it was kept
        lately.
        """
        now, lately = self._clock.now(), named_lately(self.memory)
        return self._database.run(lambda connection: keep(connection, row, now, lately))

    def set_price(self, row: int, price: float) -> dict[Cell, float]:
        """Write what a call has cost; see `exporter.ledger.commit`."""
        return self._database.run(
            lambda connection: set_price(connection, row, price, self.exporter)
        )

    def prune(self, before: float) -> int:
        """Forget up to `CHUNK` calls that finished before a Unix time and are not named any more.

        Those that a file names are kept, and those that were handed over again since.

        Returns:
            How many; fewer than `CHUNK` when there are no more. Totals are never pruned.
        """
        return self._database.run(lambda connection: prune(connection, before))

    def prune_labels(self) -> None:
        """Forget the sets of labels that no call and no total refers to."""
        while self._database.run(prune_labels) == CHUNK:
            pass


def _label_sets(connection: Connection, rows: Collection[int]) -> dict[int, Labels]:
    found = fetch(connection, _LABEL_SETS, rows=packed(rows))
    return {row: json.loads(labels) for row, labels in sorted(found)}


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]
