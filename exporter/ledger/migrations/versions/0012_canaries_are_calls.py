"""Store the calls of canaries as ordinary calls."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

# Runs whose call the provider has accepted, and that have not ended.
_OPEN = "canary_runs.result IS NULL AND canary_runs.reference_id IS NOT NULL"


def upgrade() -> None:
    """Insert the calls of open canary runs.

    Exporters of older versions must not use the ledger: they would count these calls.
    """
    op.add_column("calls", sa.Column("canary_run_id", sa.BigInteger))
    of_canaries = sa.text("canary_run_id IS NOT NULL")
    op.create_index(
        "calls_of_canaries",
        "calls",
        ["canary_run_id"],
        sqlite_where=of_canaries,
        postgresql_where=of_canaries,
    )
    op.execute(
        f"INSERT INTO accounts (name) SELECT DISTINCT account FROM canary_runs WHERE {_OPEN} "  # noqa: S608 - constant
        "ON CONFLICT DO NOTHING"
    )
    op.execute(
        f"INSERT INTO label_sets (labels) SELECT DISTINCT '{{}}' FROM canary_runs WHERE {_OPEN} "  # noqa: S608 - constant
        "ON CONFLICT DO NOTHING"
    )
    op.execute(
        "INSERT INTO calls (account_id, normalized_id, reference_id, label_set_id, pushed, "  # noqa: S608 - constant
        "first_watched, state, state_since, canary_run_id) "
        "SELECT accounts.id, lower(replace(reference_id, '-', '')), reference_id, label_sets.id, "
        "TRUE, accepted_at, 'new', accepted_at, canary_runs.id "
        "FROM canary_runs JOIN accounts ON accounts.name = canary_runs.account "
        f"JOIN label_sets ON label_sets.labels = '{{}}' WHERE {_OPEN} "
        "ON CONFLICT (account_id, normalized_id) "
        "DO UPDATE SET canary_run_id = excluded.canary_run_id"
    )
    op.drop_column("canary_runs", "ask_at")
    op.execute("UPDATE compatibility SET oldest_user = '0012'")
