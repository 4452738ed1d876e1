"""Ids are compared without dashes."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# What has been counted is kept, then the spelling that the provider knows, then the older row.
_DUPLICATES = """
    CREATE TEMPORARY TABLE duplicates AS
    SELECT id, kept_id FROM (
        SELECT id, first_value(id) OVER (
            PARTITION BY account_id, replace(reference_key, '-', '')
            ORDER BY
                CASE
                    WHEN result IN ('success', 'failure') THEN 0
                    WHEN result = 'unknown' THEN 1
                    WHEN result = 'deleted' THEN 4
                    WHEN state IN ('new', 'not_found') THEN 3
                    ELSE 2
                END,
                CASE WHEN result IS NULL THEN 0 ELSE finished_at END,
                id
        ) AS kept_id
        FROM calls
    ) AS spellings
    WHERE id <> kept_id
"""

# A finished call keeps its times. A price that was added with another spelling of a finished call
# must not be added again.
_MERGE = """
    UPDATE calls SET
        first_watched = CASE
            WHEN result IS NULL AND merged.first_watched < calls.first_watched
            THEN merged.first_watched ELSE calls.first_watched
        END,
        price = CASE
            WHEN coalesce(calls.price, 0) > 0 THEN calls.price
            WHEN result IS NULL THEN merged.price
            ELSE coalesce(merged.counted_price, calls.price)
        END,
        pushed = CASE WHEN merged.pushed = 1 THEN TRUE ELSE calls.pushed END,
        named_at = CASE
            WHEN coalesce(calls.named_at, 0) < merged.named_at
            THEN merged.named_at ELSE calls.named_at
        END
    FROM (
        SELECT
            kept_id,
            min(first_watched) AS first_watched,
            max(price) AS price,
            max(CASE WHEN result NOT IN ('deleted') THEN price END) AS counted_price,
            max(CASE WHEN pushed THEN 1 ELSE 0 END) AS pushed,
            max(named_at) AS named_at
        FROM calls JOIN duplicates ON duplicates.id = calls.id
        GROUP BY kept_id
    ) AS merged
    WHERE calls.id = merged.kept_id
"""


def upgrade() -> None:
    """Merge the rows of one call under several spellings, and compare what is left without dashes.

    The column gets another name: exporters of the versions before, which would not find these calls
    and count them again, cannot add calls any more. They finish those that they poll.
    """
    if op.get_context().dialect.name == "postgresql":
        # Nothing may be added between these statements. At once, so that two never wait for each
        # other.
        op.execute("LOCK TABLE calls IN ACCESS EXCLUSIVE MODE")
    op.execute(_DUPLICATES)
    op.execute(_MERGE)
    op.execute(
        "INSERT INTO call_sources (source, call_id) "
        "SELECT source, kept_id FROM call_sources JOIN duplicates ON id = call_id "
        "WHERE TRUE ON CONFLICT DO NOTHING"
    )
    op.execute("DELETE FROM call_sources WHERE call_id IN (SELECT id FROM duplicates)")
    op.execute("DELETE FROM calls WHERE id IN (SELECT id FROM duplicates)")
    op.execute("DROP TABLE duplicates")
    op.execute(
        "UPDATE calls SET reference_key = replace(reference_key, '-', '') "
        "WHERE reference_key <> replace(reference_key, '-', '')"
    )
    op.execute("ALTER TABLE calls RENAME COLUMN reference_key TO normalized_id")
    op.execute("UPDATE compatibility SET oldest_user = '0010'")
