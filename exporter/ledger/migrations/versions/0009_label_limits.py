"""Limits of sets of labels, by account."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables; exporters of the revision before go on without them.

    Every set in use has totals of its own at first; the oldest rows count as used last, because
    they were the ones that were shown.
    """
    op.create_table(
        "counted_labels",
        *_pair(),
        sa.Column("used", sa.BigInteger, nullable=False),
        sa.Column("begun_in", sa.BigInteger),
        sa.Index("counted_labels_used", "account_id", "used"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "folded_labels",
        *_pair(),
        sa.Column("into_id", sa.Integer, sa.ForeignKey("label_sets.id"), nullable=False),
        sa.Column("folded_in", sa.BigInteger),
        sa.Index("folded_labels_into", "into_id", "account_id"),
        sqlite_with_rowid=False,
    )
    if op.get_context().dialect.name == "postgresql":
        op.create_index("counted_labels_begun", "counted_labels", ["begun_in"])
        op.create_index("folded_labels_folded", "folded_labels", ["folded_in"])
    op.create_index("calls_labels", "calls", ["label_set_id"])
    op.create_index("totals_labels", "totals", ["label_set_id"])
    op.execute(
        "INSERT INTO counted_labels (label_set_id, account_id, used) "
        "SELECT label_set_id, account_id, -label_set_id FROM calls UNION "
        "SELECT label_set_id, account_id, -label_set_id FROM totals"
    )


def _pair() -> list[sa.Column[int]]:
    return [
        sa.Column("label_set_id", sa.Integer, sa.ForeignKey("label_sets.id"), primary_key=True),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), primary_key=True),
    ]
