"""Notifications that are still to be sent."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table; exporters of the revision before go on without it."""
    row = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "notifications",
        sa.Column("id", row, primary_key=True),
        sa.Column("target", sa.String(64), nullable=False),
        sa.Column("event_id", sa.String(64), nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("queued_at", sa.Float, nullable=False),
        sa.Column("give_up_at", sa.Float, nullable=False),
        sa.Column("due_at", sa.Float, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Index("notifications_due", "target", "due_at"),
        sqlite_autoincrement=True,
    )
