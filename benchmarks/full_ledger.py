"""A ledger full of calls that have not finished, as an exporter of some days leaves it behind."""

from __future__ import annotations

import random
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from exporter.calls import CallState
from exporter.ledger.engine import open_database

_DAY: Final = 86_400.0
_PUSHED: Final = 100
"""Calls that were handed over in one request: they share a time."""

_STATES: Final = (CallState.QUEUED, CallState.AWAITING_REPORT, CallState.NOT_FOUND)


def fill(path: Path, calls: int, now: float) -> None:
    """Make a ledger with that many calls of the account `main`, watched since a day ago.

    Written by the shortest way: through the exporter's own, a million calls take two minutes.
    """
    open_database(f"sqlite:///{path}").close()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("INSERT INTO accounts (id, name) VALUES (1, 'main')")
        database.execute("INSERT INTO label_sets (id, labels) VALUES (1, '{}')")
        database.executemany(
            "INSERT INTO calls (id, account_id, normalized_id, reference_id, label_set_id, pushed,"
            " first_watched, state, state_since) VALUES (?, 1, ?, ?, 1, TRUE, ?, ?, ?)",
            _rows(calls, now),
        )


def _rows(calls: int, now: float) -> Iterator[tuple[object, ...]]:
    chance = random.Random(1)
    requests = calls // _PUSHED + 1
    for row in range(calls):
        name = str(uuid.UUID(int=chance.getrandbits(128)))
        watched = now - _DAY * (1 - row // _PUSHED / requests / 2)
        # Answers came in another order than the calls.
        since = (now - _DAY / 2 * chance.random()) // 1
        yield row + 1, name, name.upper(), watched, chance.choice(_STATES), since
