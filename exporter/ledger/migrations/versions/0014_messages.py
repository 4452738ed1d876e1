"""Messages beside calls. Exporters of older versions would poll them as calls."""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"

_COLUMNS = "kind VARCHAR(8) DEFAULT 'call' NOT NULL", "delivered INTEGER", "failed INTEGER"


def upgrade() -> None:
    """Add the columns. Exporters of older versions cannot use the ledger any more."""
    # Alembic's batch mode would copy the table.
    for column in _COLUMNS:
        op.execute(f"ALTER TABLE calls ADD COLUMN {column}")
    op.execute("UPDATE compatibility SET oldest_user = '0014'")
