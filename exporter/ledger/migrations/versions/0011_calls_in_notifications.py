"""Store the finished call in notifications instead of the rendered event."""

from __future__ import annotations

import json
from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

_BATCH = 1_000


def upgrade() -> None:
    """Replace pending events by their calls, from which the ids of events are derived.

    The column is renamed, so that exporters of older versions cannot add or send notifications.
    """
    op.execute("ALTER TABLE notifications RENAME COLUMN event TO call")
    op.execute("ALTER TABLE notifications DROP COLUMN event_id")
    connection = op.get_bind()
    page = sa.text("SELECT id, call FROM notifications WHERE id > :after ORDER BY id LIMIT :limit")
    change = sa.text("UPDATE notifications SET call = :call, account = :account WHERE id = :id")
    after = 0
    while rows := connection.execute(page, {"after": after, "limit": _BATCH}).all():
        calls = [json.loads(event)["data"] for _, event in rows]
        for call in calls:
            for name in ("first_watched", "finished_at"):
                call[name] = datetime.fromisoformat(call[name]).timestamp()
        connection.execute(
            change,
            [
                {
                    "id": id_,
                    "call": json.dumps(call, ensure_ascii=False),
                    "account": call["account"],
                }
                for (id_, _), call in zip(rows, calls, strict=True)
            ],
        )
        after = rows[-1].id
    op.execute("UPDATE compatibility SET oldest_user = '0011'")
