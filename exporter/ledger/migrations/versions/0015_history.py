"""The history of calls. Exporters of older versions can go on using the ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "history",
        sa.Column(
            "call_id",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            sa.ForeignKey("calls.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("at", sa.Float, primary_key=True),
        sa.Column("event", sa.String(16), primary_key=True),
        sa.Column("subject", sa.String(64), primary_key=True),
        sa.Column("detail", sa.String(200)),
        sqlite_with_rowid=False,
    )
