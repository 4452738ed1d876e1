"""Turns of accounts, and of retries, among the notifications of a target."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns with defaults, and indexes; exporters of the revision before go on."""
    account = sa.Column("account", sa.String(64), nullable=False, server_default="?")
    retry = sa.Column("retry", sa.Boolean, nullable=False, server_default=sa.false())
    op.add_column("notifications", account)
    op.add_column("notifications", retry)
    op.execute("UPDATE notifications SET retry = (attempts > 0)")
    turns = ["target", "retry", "account", "due_at"]
    op.create_index("notifications_turns", "notifications", turns)
    op.create_index("notifications_overdue", "notifications", ["target", "give_up_at"])
