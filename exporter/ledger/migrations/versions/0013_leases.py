"""Add leases on accounts, which replace the messages between exporters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Replace tables and columns. Exporters of older versions cannot use the ledger any more."""
    postgresql = op.get_context().dialect.name == "postgresql"
    if postgresql:
        indexes = (
            "calls_claimed",
            "totals_changed",
            "counted_labels_begun",
            "folded_labels_folded",
        )
        for index in indexes:
            op.execute(f"DROP INDEX {index}")
    # Alembic's batch mode would copy the tables.
    for table, column in (
        ("accounts", "next_slot"),
        ("calls", "replica_id"),
        ("totals", "changed_in"),
        ("counted_labels", "begun_in"),
        ("folded_labels", "folded_in"),
    ):
        op.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    op.execute("DROP TABLE replica_messages")
    op.execute("DROP TABLE replicas")
    op.execute("ALTER TABLE calls ADD COLUMN epoch BIGINT DEFAULT 0 NOT NULL")
    if postgresql:
        unfinished = sa.text("result IS NULL")
        op.create_index(
            "calls_epoch", "calls", ["account_id", "epoch"], postgresql_where=unfinished
        )
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
    # Exporters without limits of labels may have shared the ledger with newer ones.
    op.execute(
        "INSERT INTO counted_labels (label_set_id, account_id, used) "
        "SELECT DISTINCT label_set_id, account_id, -label_set_id FROM totals WHERE TRUE "
        "ON CONFLICT DO NOTHING"
    )
    op.execute(
        "DELETE FROM folded_labels WHERE EXISTS (SELECT 1 FROM counted_labels c WHERE "
        "c.label_set_id = folded_labels.label_set_id AND c.account_id = folded_labels.account_id)"
    )
    op.execute("UPDATE compatibility SET oldest_user = '0013'")
