"""Ledgers of an older version, which the first exporter of this version migrates."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from sqlalchemy import inspect, select

from exporter.calls import WatchedCall
from exporter.ids import Kind, ReferenceId
from exporter.ledger import canary_runs
from exporter.ledger.clock import LedgerClock
from exporter.ledger.engine import open_database
from exporter.ledger.notifications import newest_given_up
from exporter.ledger.outbox import Claim, DeliveryAction, DeliveryResult, Outbox, Route
from exporter.ledger.schema import alembic_version, compatibility
from exporter.ledger.store import Store
from exporter.ledger.totals import TotalKind
from exporter.ledger.types import FinishedCall, Observation
from exporter.notify.events import cloud_event
from tests.ledger.test_ledger_database import refused, run
from tests.ledger.test_ledger_store import BUSY, NOW, finish, ids, new, push

DATA = {
    "account": "main",
    "reference_id": "A-1",
    "result": "success",
    "status": "answered",
    "duration": 13.0,
    "key": "1",
    "labels": {"campaign": "c\u1ea5p c\u1ee9u"},
    "first_watched": "2023-11-14T22:13:20.250Z",
    "finished_at": "2023-11-14T22:14:20.357Z",
}
OF_CALL = {"kind": "call", "delivered": None, "failed": None}
EVENT = {"specversion": "1.0", "id": "e", "subject": "A-1", "data": DATA}
CALLS = "account_id, normalized_id, reference_id, label_set_id, first_watched, state, state_since"
RUNS = "canary_id, due_at, account, request_id, expect, started_at, deadline_at, ask_at"
NOTIFICATIONS = "target, account, event_id, event, queued_at, give_up_at, due_at, attempts, retry"
FILLED = f"""
    INSERT INTO accounts (name, next_slot) VALUES ('main', 7), ('b', NULL);
    INSERT INTO label_sets (labels) VALUES ('{{}}');
    INSERT INTO calls ({CALLS}, result, status, finished_at) VALUES
        (1, 'open', 'open', 1, 5, 'queued', 5, NULL, NULL, NULL),
        (1, 'done', 'done', 1, 5, 'queued', 5, 'success', 'busy', 6),
        (2, 'ab1', 'AB1', 1, 1, 'queued', 1, NULL, NULL, NULL);
    INSERT INTO totals (account_id, label_set_id, total, cell, value)
        VALUES (1, 1, 'calls', 'success/busy', 41);
    INSERT INTO canaries (name) VALUES ('hourly');
    INSERT INTO canary_runs ({RUNS}, reference_id, accepted_at) VALUES
        (1, 1, 'c', 'r', 'answered', 1, 9, 1, 'Ab-1', 5),
        (1, 2, 'b', 'r', 'answered', 1, 9, 1, 'Ab-1', 6),
        (1, 3, 'c', 'r', 'answered', 1, 9, 1, NULL, NULL);
    INSERT INTO notifications ({NOTIFICATIONS}) VALUES
        ('t', 'main', 'e', :event, :now, :now + 9999, :now - 1, 3, TRUE),
        ('t', '?', 'e', :event, :now, :now + 9999, :now - 1, 0, FALSE)
"""
LIVE = """
    INSERT INTO replicas (name, peers, held, heartbeat, beat_at, ended_at) VALUES
        ('old 1', '', 1, 10, extract(epoch FROM clock_timestamp()), NULL),
        ('ended', '', 0, 10, 1, 2), ('dead', '', 0, 10, 1, NULL);
    INSERT INTO replica_messages (replica_id, call_id, message) VALUES (1, 1, 'hasten')
"""


def oldest_ledger(url: str) -> None:
    """Make the oldest ledger that can be migrated, as that version made it.

    `shapes` holds what `pg_dump` and SQLite said of it.
    """
    engine = "sqlite" if url.startswith("sqlite") else "postgresql"
    run(url, (Path(__file__).parent / "shapes" / f"0010.{engine}.sql").read_text())


def shape(url: str) -> dict[str, object]:
    """Return everything that tells the tables of a ledger from others."""
    database = open_database(url)
    with database.begin() as connection:
        seen = inspect(connection)
        tables: dict[str, object] = {
            table: (
                {
                    one["name"]: (str(one["type"]), one["nullable"], one["default"])
                    for one in seen.get_columns(table)
                },
                seen.get_pk_constraint(table)["constrained_columns"],
                sorted(
                    (one["constrained_columns"], one["referred_table"], str(one["options"]))
                    for one in seen.get_foreign_keys(table)
                ),
                sorted(one["column_names"] for one in seen.get_unique_constraints(table)),
                sorted(
                    (
                        one["name"],
                        one["column_names"],
                        str(one["dialect_options"].get(f"{database.engine.name}_where")),
                    )
                    for one in seen.get_indexes(table)
                    if "duplicates_constraint" not in one
                ),
            )
            for table in seen.get_table_names()
        }
        if database.engine.name == "sqlite":
            listed = connection.exec_driver_sql("PRAGMA table_list")
            tables["without rowid"] = sorted(row.name for row in listed if row.wr)
            made = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql <> ''")
            tables["autoincrement"] = sorted(name for name, sql in made if "AUTOINCREMENT" in sql)
        for table in (alembic_version, compatibility):
            tables[f"rows of {table}"] = connection.execute(select(table)).all()
    database.close()
    return tables


def test_an_older_ledger_becomes_a_new_one_and_goes_on(
    old_url: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    oldest_ledger(old_url)
    run(old_url, FILLED, event=json.dumps(EVENT, ensure_ascii=False), now=time.time())
    new = f"sqlite:///{tmp_path}/new.db"
    if not old_url.startswith("sqlite"):
        new = request.getfixturevalue("used_url")
        # Exporters that claim calls are not cut off.
        run(old_url, LIVE)
        assert "older version (old 1), which cannot share" in refused(old_url)
        run(old_url, "UPDATE replicas SET ended_at = 3 WHERE id = 1")
    assert shape(old_url) == shape(new)  # older exporters read there, too, that they cannot use it
    database = open_database(old_url)
    store = Store(database)
    (call,) = store.unfinished("main")
    assert ids([call]) == ["open"]
    finish(store, call)
    (counted,) = (
        v
        for c, v in store.database.run(store.snapshot).totals.items()
        if c.total is TotalKind.CALLS
    )
    assert counted == 42
    # Calls of canaries, one of which a callback had brought.
    first, second, unsure = database.run(canary_runs.read_state, ["hourly"], 0.0).open
    assert (first.account, first.reference_id, first.accepted_at) == ("c", "Ab-1", 5.0)
    assert (second.account, second.reference_id, unsure.call_id) == ("b", "AB1", None)
    for canary in (first, second):
        watched = WatchedCall(canary.call_id or 0, ReferenceId(canary.reference_id or ""), 5.0)
        committed = store.commit([Observation(canary.account, watched, BUSY, NOW)])
        assert (committed.finished, committed.ignored) == ([], frozenset())
    # Notifications held the event as it is sent, and some no account.
    claims = [Claim(retry, 99, 99) for retry in (False, True)]
    found = database.run(Outbox(LedgerClock()).claim, "t", [], claims, 9, 60.0).claimed
    times = {"first_watched": 1_700_000_000.25, "finished_at": 1_700_000_060.357}
    event = FinishedCall(**{**DATA, **times})  # type: ignore[arg-type]
    expected = [(1, False, event), (4, True, event)]
    assert [(one.attempts, one.retry, one.call) for one in found] == expected
    assert json.loads(cloud_event(found[0].call).body)["data"] == {**DATA, **OF_CALL}
    database.close()


# Statements that undo a revision in a new ledger.
UNDONE = {
    "0014": """
        ALTER TABLE calls DROP COLUMN kind;
        ALTER TABLE calls DROP COLUMN delivered;
        ALTER TABLE calls DROP COLUMN failed;
        UPDATE compatibility SET oldest_user = '0013'
        """,
    "0015": "DROP TABLE history",
    "0016": """
        ALTER TABLE notifications DROP COLUMN claimed;
        ALTER TABLE notifications DROP COLUMN answer;
        ALTER TABLE notifications DROP COLUMN call_id;
        DROP TABLE given_up_notifications
        """,
}


@pytest.mark.parametrize("revision", ["0013", "0014", "0015"])
def test_a_ledger_is_migrated_while_exporters_use_it(old_url: str, revision: str) -> None:
    expected = shape(old_url)
    database = open_database(old_url)
    store = Store(database)
    store.outbox.set_routes([Route("t", 1e9)])
    push(store, new("open"))
    finish(store, *push(store, new("done")))
    database.close()
    for added, statements in reversed(UNDONE.items()):
        if added > revision:
            run(old_url, statements)
    run(old_url, f"UPDATE alembic_version SET version_num = '{revision}'")
    run(old_url, "INSERT INTO exporters VALUES ('old', 'old', '[]', 9e9)")
    assert shape(old_url) == expected
    database = open_database(old_url)
    store = Store(database)
    (stored,) = store.unfinished("main")
    assert (stored.call.reference_id, stored.call.kind) == ("open", Kind.CALL)
    # What was pending then is given up as all others are.
    claims = [Claim(False, 9, 9)]
    (one,) = database.run(store.outbox.claim, "t", [], claims, 9, 60.0).claimed
    gone = DeliveryResult(one, DeliveryAction.GIVE_UP, answer="gone")
    assert database.run(store.outbox.claim, "t", [gone]).gave_up == 1
    (kept,) = database.run(newest_given_up, LedgerClock(), "t")
    assert (kept.reference_id, kept.last_answer) == ("done", "gone")
    database.close()


@pytest.mark.parametrize("revision", ["0009", "0012"])
def test_a_ledger_that_is_too_old_is_left_as_it_is(old_url: str, revision: str) -> None:
    oldest_ledger(old_url)
    run(old_url, f"UPDATE alembic_version SET version_num = '{revision}'")
    for _ in range(2):
        assert f"too old (revision {revision}); name another database" in refused(old_url)
