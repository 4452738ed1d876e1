"""The ledger's clock, and up to when queries have read."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables; exporters of the revision before go on without them."""
    op.create_table(
        "clock_marks",
        sa.Column("ahead", sa.Float, nullable=False),
        sa.Column("wall", sa.Float, nullable=False),
        sa.Column("steady", sa.Float, nullable=False),
        sa.Column("boot", sa.String(64), nullable=False),
    )
    op.create_table(
        "cursors",
        sa.Column("source", sa.String(80), primary_key=True),
        sa.Column("query", sa.String(64), nullable=False),
        sa.Column("read_until", sa.Float, nullable=False),
        sqlite_with_rowid=False,
    )
    # What was written while a clock was ahead would not be given up, or forgotten, before its time
    # has come. From here on, no time lies ahead.
    now: sa.ColumnElement[float] = sa.literal(time.time())
    if op.get_context().dialect.name == "postgresql":
        now = sa.literal_column("extract(epoch FROM clock_timestamp())::float8")
    for name in ("first_watched", "state_since", "finished_at", "named_at"):
        column: sa.ColumnClause[float] = sa.column(name)
        calls = sa.table("calls", column)
        op.execute(sa.update(calls).where(column > now).values({name: now}))
