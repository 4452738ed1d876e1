"""What exporters that share a ledger tell each other."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns and tables; what only a shared ledger is asked for has its index only there."""
    row = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.add_column("accounts", sa.Column("next_slot", sa.Float))
    op.add_column("calls", sa.Column("replica_id", sa.BigInteger))
    op.add_column("totals", sa.Column("changed_in", sa.BigInteger))
    if op.get_context().dialect.name == "postgresql":
        unfinished = sa.text("result IS NULL")
        claimed = ["account_id", "replica_id"]
        op.create_index("calls_claimed", "calls", claimed, postgresql_where=unfinished)
        op.create_index("totals_changed", "totals", ["changed_in"])
    op.create_table(
        "replicas",
        sa.Column("id", row, primary_key=True),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("peers", sa.String(64), nullable=False),
        sa.Column("held", sa.Integer, nullable=False),
        sa.Column("heartbeat", sa.Float, nullable=False),
        sa.Column("beat_at", sa.Float, nullable=False),
        sa.Column("ended_at", sa.Float),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "replica_messages",
        sa.Column("id", row, primary_key=True),
        sa.Column("replica_id", sa.BigInteger, nullable=False, index=True),
        sa.Column("call_id", sa.BigInteger, nullable=False),
        sa.Column("message", sa.String(16), nullable=False),
    )
    compatibility = op.create_table(
        "compatibility", sa.Column("oldest_user", sa.String(32), primary_key=True)
    )
    op.bulk_insert(compatibility, [{"oldest_user": revision}])
