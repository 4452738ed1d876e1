"""Leases on accounts, calls in notifications, and calls of canaries as ordinary calls."""

from __future__ import annotations

import json
from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0010"

_BATCH = 1_000

# Runs whose call the provider has accepted, and that have not ended.
_OPEN = "canary_runs.result IS NULL AND canary_runs.reference_id IS NOT NULL"

# On PostgreSQL, indexes on a column are dropped with it.
_CHANGES = (
    "ALTER TABLE calls ADD COLUMN canary_run_id BIGINT",
    "CREATE INDEX calls_of_canaries ON calls (canary_run_id) WHERE canary_run_id IS NOT NULL",
    f"""
    INSERT INTO accounts (name) SELECT DISTINCT account FROM canary_runs WHERE {_OPEN}
    ON CONFLICT DO NOTHING
    """,  # noqa: S608 - constant
    f"""
    INSERT INTO label_sets (labels) SELECT DISTINCT '{{}}' FROM canary_runs WHERE {_OPEN}
    ON CONFLICT DO NOTHING
    """,  # noqa: S608 - constant
    f"""
    INSERT INTO calls (account_id, normalized_id, reference_id, label_set_id, pushed,
        first_watched, state, state_since, canary_run_id)
    SELECT accounts.id, lower(replace(reference_id, '-', '')), reference_id, label_sets.id,
        TRUE, accepted_at, 'new', accepted_at, canary_runs.id
    FROM canary_runs JOIN accounts ON accounts.name = canary_runs.account
    JOIN label_sets ON label_sets.labels = '{{}}' WHERE {_OPEN}
    ON CONFLICT (account_id, normalized_id) DO UPDATE SET canary_run_id = excluded.canary_run_id
    """,  # noqa: S608 - constant
    "ALTER TABLE canary_runs DROP COLUMN ask_at",
    "ALTER TABLE accounts DROP COLUMN next_slot",
    "ALTER TABLE calls DROP COLUMN replica_id",
    "ALTER TABLE totals DROP COLUMN changed_in",
    "ALTER TABLE counted_labels DROP COLUMN begun_in",
    "ALTER TABLE folded_labels DROP COLUMN folded_in",
    "DROP TABLE replica_messages",
    "DROP TABLE replicas",
    "ALTER TABLE calls ADD COLUMN epoch BIGINT DEFAULT 0 NOT NULL",
    """
    INSERT INTO counted_labels (label_set_id, account_id, used)
    SELECT DISTINCT label_set_id, account_id, -label_set_id FROM totals WHERE TRUE
    ON CONFLICT DO NOTHING
    """,
    """
    DELETE FROM folded_labels WHERE EXISTS (SELECT 1 FROM counted_labels c WHERE
    c.label_set_id = folded_labels.label_set_id AND c.account_id = folded_labels.account_id)
    """,
    "UPDATE compatibility SET oldest_user = '0013'",
)


def upgrade() -> None:
    """Change the tables. Exporters of older versions cannot use the ledger any more."""
    _replace_events()
    # Alembic's batch mode would copy the tables.
    for statement in _CHANGES:
        op.execute(statement)
    if op.get_context().dialect.name == "postgresql":
        op.execute("CREATE INDEX calls_epoch ON calls (account_id, epoch) WHERE result IS NULL")
    op.create_table(
        "exporters",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("accounts", sa.Text, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "leases",
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("holder", sa.String(32)),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.create_table(
        "notices",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("call_id", sa.BigInteger),
        sa.Column("notice", sa.String(16), nullable=False),
        sa.Index("notices_account", "account_id"),
        sqlite_autoincrement=True,
    )


def _replace_events() -> None:
    """Replace the events in notifications by their calls."""
    op.execute("ALTER TABLE notifications RENAME COLUMN event TO call")
    op.execute("ALTER TABLE notifications DROP COLUMN event_id")
    connection, after = op.get_bind(), 0
    page = sa.text("SELECT id, call FROM notifications WHERE id > :after ORDER BY id LIMIT :limit")
    change = sa.text("UPDATE notifications SET call = :call, account = :account WHERE id = :id")
    while rows := connection.execute(page, {"after": after, "limit": _BATCH}).all():
        changes = []
        for after, event in rows:
            call = json.loads(event)["data"]
            for name in ("first_watched", "finished_at"):
                call[name] = datetime.fromisoformat(call[name]).timestamp()
            text = json.dumps(call, ensure_ascii=False)
            changes.append({"id": after, "call": text, "account": call["account"]})
        connection.execute(change, changes)
