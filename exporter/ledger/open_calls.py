"""How many calls of each account are open, for `watch.max_calls`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from sqlalchemy import Connection, bindparam, func, select

from exporter.ledger.engine import Database
from exporter.ledger.records import StoredCall
from exporter.ledger.schema import accounts, calls

_OPEN: Final = select(func.count().label("calls"), func.max(calls.c.id).label("newest")).where(
    calls.c.result.is_(None)
)
_BY_ACCOUNT: Final = _OPEN.add_columns(calls.c.account_id).group_by(calls.c.account_id).subquery()
_ALL: Final = select(accounts.c.name, _BY_ACCOUNT.c.calls, _BY_ACCOUNT.c.newest).join_from(
    accounts, _BY_ACCOUNT
)
_NEWER: Final = _OPEN.where(
    calls.c.account_id == bindparam("account"), calls.c.id > bindparam("newest")
)


class OpenCalls:
    """Open calls by account, counted in memory: to count a million takes 0.1 s.

    Where exporters share the ledger, the calls that the others have inserted are counted when room
    is needed, by index and each once. What the others have finished is seen at the next `recount`;
    until then, the count may be too high.

    Args:
        database: the ledger.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.recount()

    def recount(self) -> None:
        """Count anew."""
        with self._database.begin() as connection:
            found = connection.execute(_ALL).all()
        self._calls = Counter({name: count for name, count, _ in found})
        self._newest = {name: newest for name, _, newest in found}

    def room(
        self, connection: Connection, rows: Mapping[str, int], limit: float
    ) -> dict[str, float]:
        """Return how many calls there is room for, by account.

        Args:
            connection: in a transaction.
            rows: the rows of the accounts.
            limit: how many calls of an account may be open at a time.
        """
        if self._database.shared:
            for name, row in rows.items():
                newer = {"account": row, "newest": self._newest.get(name, 0)}
                count, newest = connection.execute(_NEWER, newer).one()
                if count:
                    self._calls[name] += count
                    self._newest[name] = newest
        return {name: limit - self._calls[name] for name in rows}

    def add(self, inserted: Iterable[StoredCall]) -> None:
        """Count calls that this exporter has inserted."""
        for account, _, call in inserted:
            self._calls[account] += 1
            self._newest[account] = max(call.id, self._newest.get(account, 0))

    def remove(self, ended: Counter[str]) -> None:
        """Count calls of accounts no more."""
        self._calls.subtract(ended)
