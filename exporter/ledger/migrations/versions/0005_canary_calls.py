"""Canary calls."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables."""
    row = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "canaries",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(64), nullable=False, unique=True),
        sa.Column("since", sa.BigInteger),
        sa.Column("seen_until", sa.BigInteger),
        sa.Column("success", sa.Boolean),
        sa.Column("last_success_at", sa.Float),
        sa.Column("accepted_seconds", sa.Float),
        sa.Column("finished_seconds", sa.Float),
    )
    op.create_table(
        "canary_runs",
        sa.Column("id", row, primary_key=True),
        sa.Column("canary_id", sa.Integer, sa.ForeignKey("canaries.id"), nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("account", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("expect", sa.String(16), nullable=False),
        sa.Column("expect_key", sa.String(8)),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("deadline_at", sa.Float, nullable=False),
        sa.Column("ask_at", sa.Float, nullable=False),
        sa.Column("reference_id", sa.String(128)),
        sa.Column("accepted_at", sa.Float),
        sa.Column("result", sa.String(16)),
        sa.Column("status", sa.String(16)),
        sa.Column("code", sa.String(8)),
        sa.Column("ended_at", sa.Float),
        sa.UniqueConstraint("canary_id", "due_at"),
        sqlite_autoincrement=True,
    )
    going_on = sa.text("result IS NULL")
    op.create_index(
        "canary_runs_open",
        "canary_runs",
        ["id"],
        sqlite_where=going_on,
        postgresql_where=going_on,
    )
    op.create_table(
        "canary_totals",
        sa.Column("canary_id", sa.Integer, sa.ForeignKey("canaries.id"), primary_key=True),
        sa.Column("result", sa.String(16), primary_key=True),
        sa.Column("runs", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
