"""Notifications that were given up, and the last answers of targets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Add columns and a table. Exporters of version 0014 can use the ledger, too."""
    claimed = sa.Column("claimed", sa.Boolean, nullable=False, server_default=sa.false())
    op.add_column("notifications", claimed)
    op.add_column("notifications", sa.Column("answer", sa.String(200)))
    op.add_column("notifications", sa.Column("call_id", sa.BigInteger))
    op.create_table(
        "given_up_notifications",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("target", sa.String(64), nullable=False),
        sa.Column("account", sa.String(64), nullable=False),
        sa.Column("call", sa.Text, nullable=False),
        sa.Column("call_id", sa.BigInteger),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("answer", sa.String(200)),
        sa.Column("gave_up_at", sa.Float, nullable=False),
        sa.Index("given_up_notifications_newest", "target", "gave_up_at"),
        sa.Index("given_up_notifications_oldest", "gave_up_at"),
    )
