"""Calls, their labels and sources, and totals.

Written out, not taken from `schema.py`: a migration has to stay what it was.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "accounts",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(64), nullable=False, unique=True),
    )
    op.create_table(
        "label_sets",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("labels", sa.Text, nullable=False, unique=True),
    )
    # SQLite numbers rows by itself only where the type is INTEGER, which has 64 bits there.
    row = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "calls",
        sa.Column("id", row, primary_key=True),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("reference_key", sa.String(128), nullable=False),
        sa.Column("reference_id", sa.String(128), nullable=False),
        sa.Column("label_set_id", sa.Integer, sa.ForeignKey("label_sets.id"), nullable=False),
        sa.Column("pushed", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("first_watched", sa.Float, nullable=False),
        sa.Column("state", sa.String(24), nullable=False),
        sa.Column("state_since", sa.Float, nullable=False),
        sa.Column("result", sa.String(16)),
        sa.Column("status", sa.String(16)),
        sa.Column("duration", sa.Float),
        sa.Column("key", sa.String(8)),
        sa.Column("finished_at", sa.Float),
        sa.UniqueConstraint("account_id", "reference_key"),
        sqlite_autoincrement=True,
    )
    for name, columns, where in (
        ("calls_unfinished", ["account_id", "id"], sa.text("result IS NULL")),
        ("calls_finished", ["finished_at"], sa.text("result IS NOT NULL")),
    ):
        op.create_index(name, "calls", columns, sqlite_where=where, postgresql_where=where)
    op.create_table(
        "call_sources",
        sa.Column("source", sa.String(255).with_variant(sa.Text(), "postgresql"), primary_key=True),
        sa.Column("call_id", row, sa.ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_index("call_sources_call", "call_sources", ["call_id"])
    op.create_table(
        "totals",
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("label_set_id", sa.Integer, sa.ForeignKey("label_sets.id"), primary_key=True),
        sa.Column("total", sa.String(24), primary_key=True),
        sa.Column("cell", sa.String(48), primary_key=True),
        sa.Column("value", sa.Float, nullable=False),
        sqlite_with_rowid=False,
    )
