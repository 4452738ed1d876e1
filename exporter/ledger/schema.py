"""The tables of a new ledger; `migrations/` upgrades older ones to this schema."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    func,
    text,
)

from exporter.ids import Kind

HEAD: Final = "0016"
"""The newest revision under `migrations/versions`."""

OLDEST: Final = "0010"
"""The oldest revision that can be upgraded; the next one is `LEASES`."""

LEASES: Final = "0013"
"""The first revision with leases."""

OLDEST_USER: Final = "0014"
"""The revision of the oldest exporters that can use a ledger of this revision."""

metadata: Final = MetaData()


def _where(condition: str) -> dict[str, Any]:  # Any: arguments of an index
    return {f"{engine}_where": text(condition) for engine in ("sqlite", "postgresql")}


# SQLite generates row ids only for the type INTEGER, which has 64 bits there.
_Row: Final = BigInteger().with_variant(Integer, "sqlite")

# Alembic's table: one row with the revision of the schema.
alembic_version: Final = Table(
    "alembic_version", metadata, Column("version_num", String(32), primary_key=True)
)

# For rolling upgrades: older exporters can use a newer schema if it is marked as compatible.
compatibility: Final = Table(
    "compatibility",
    metadata,
    Column("oldest_user", String(32), primary_key=True),  # a revision; one row
)

accounts: Final = Table(
    "accounts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
)

# All labels of a call, also those that `watch.labels` does not show, so that it can be changed
# without loss. Label sets without calls and totals are pruned.
label_sets: Final = Table(
    "label_sets",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("labels", Text, nullable=False, unique=True),  # JSON object, keys sorted
)

# The label sets that have totals of their own, by account: within `watch.max_label_values` and
# `watch.max_label_sets`.
counted_labels: Final = Table(
    "counted_labels",
    metadata,
    Column("label_set_id", Integer, ForeignKey("label_sets.id"), primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), primary_key=True),
    # A sequence number of the last use. Not a time, because clocks may be set.
    Column("used", BigInteger, nullable=False),
    Index("counted_labels_used", "account_id", "used"),
    sqlite_with_rowid=False,
)

# Evicted label sets: their calls are added to the totals of another one.
folded_labels: Final = Table(
    "folded_labels",
    metadata,
    Column("label_set_id", Integer, ForeignKey("label_sets.id"), primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), primary_key=True),
    Column("into_id", Integer, ForeignKey("label_sets.id"), nullable=False),
    Index("folded_labels_into", "into_id", "account_id"),
    sqlite_with_rowid=False,
)

calls: Final = Table(
    "calls",
    metadata,
    Column("id", _Row, primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),
    Column("normalized_id", String(128), nullable=False),  # for comparison
    Column("reference_id", String(128), nullable=False),  # as first received
    Column("kind", String(8), nullable=False, server_default=Kind.CALL.value),
    Column("label_set_id", Integer, ForeignKey("label_sets.id"), nullable=False),
    # Added by a source that names each call only once: the call stays without `call_sources`.
    Column("pushed", Boolean, nullable=False, server_default=false()),
    # All times are Unix times of the ledger's clock, see `exporter.ledger.clock`.
    Column("first_watched", Float, nullable=False),
    Column("state", String(24), nullable=False),
    Column("state_since", Float, nullable=False),
    # NULL while the call is open, which every finish checks; or `deleted`.
    Column("result", String(16)),
    Column("status", String(16)),
    Column("duration", Float),  # seconds
    Column("key", String(8)),
    Column("finished_at", Float),
    # When a finished call was last pushed again, or its last source stopped naming it. Its
    # retention starts then.
    Column("named_at", Float),
    Column("price", Float),  # VND, from the provider's callback; of a message, from its result
    Column("delivered", Integer),  # receivers of a finished message that got it
    Column("failed", Integer),  # the others
    # The canary run that placed it, if any. Calls of canaries are not counted.
    Column("canary_run_id", BigInteger),
    # The epoch of the lease under which it was claimed, in a shared ledger. If it is older than the
    # lease, the holder has still to claim the call.
    Column("epoch", BigInteger, nullable=False, server_default=text("0")),
    UniqueConstraint("account_id", "normalized_id"),
    Index("calls_unfinished", "account_id", "id", **_where("result IS NULL")),
    Index("calls_finished", "finished_at", **_where("result IS NOT NULL")),
    Index("calls_labels", "label_set_id"),
    Index("calls_of_canaries", "canary_run_id", **_where("canary_run_id IS NOT NULL")),
    Index("calls_epoch", "account_id", "epoch", **_where("result IS NULL")).ddl_if("postgresql"),
    # Row ids are never reused: a late answer cannot affect another call.
    sqlite_autoincrement=True,
)

UNFINISHED_ROW: Final = func.coalesce(calls.c.result, "") == ""
"""The condition that a call, selected by its row, is open. Written so that PostgreSQL does not use
the index of open calls: without statistics, it would read all of them."""

# The configurations and files that name a call now. Unless pushed, an open call that none names is
# removed.
call_sources: Final = Table(
    "call_sources",
    metadata,
    # A path may be longer; SQLite has no limit.
    Column("source", String(255).with_variant(Text(), "postgresql"), primary_key=True),
    Column("call_id", _Row, ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True),
    Index("call_sources_call", "call_id"),
    sqlite_with_rowid=False,
)

# Events of calls that their rows do not hold; see `exporter.ledger.history`.
history: Final = Table(
    "history",
    metadata,
    Column("call_id", _Row, ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True),
    Column("at", Float, primary_key=True),
    Column("event", String(16), primary_key=True),
    Column("subject", String(64), primary_key=True),
    Column("detail", String(200)),
    sqlite_with_rowid=False,
)

# The data behind the metrics of finished calls; never pruned.
totals: Final = Table(
    "totals",
    metadata,
    Column("account_id", Integer, ForeignKey("accounts.id"), primary_key=True),
    Column("label_set_id", Integer, ForeignKey("label_sets.id"), primary_key=True),
    Column("total", String(24), primary_key=True),
    Column("cell", String(48), primary_key=True),
    Column("value", Float, nullable=False),
    Index("totals_labels", "label_set_id"),
    sqlite_with_rowid=False,
)

# The last state of the ledger's clock, in one row; see `exporter.ledger.clock`. Only for SQLite.
clock_marks: Final = Table(
    "clock_marks",
    metadata,
    Column("ahead", Float, nullable=False),
    Column("wall", Float, nullable=False),
    Column("steady", Float, nullable=False),
    Column("boot", String(64), nullable=False),
)

# The times up to which queries have read their databases.
cursors: Final = Table(
    "cursors",
    metadata,
    Column("source", String(80), primary_key=True),  # `sql:NAME`
    Column("query", String(64), nullable=False),  # a digest of the query and its database
    Column("read_until", Float, nullable=False),  # by the clock of that database
    sqlite_with_rowid=False,
)

# The exporters that share the ledger. Times here and in `leases` are the server's.
exporters: Final = Table(
    "exporters",
    metadata,
    Column("id", String(32), primary_key=True),  # of the process
    Column("name", String(255), nullable=False),  # for people
    Column("accounts", Text, nullable=False),  # names that it wants to poll: a JSON array
    Column("expires_at", Float, nullable=False),
    sqlite_with_rowid=False,
)

# The right to poll an account, held by one exporter at a time.
leases: Final = Table(
    "leases",
    metadata,
    Column("account_id", Integer, ForeignKey("accounts.id"), primary_key=True),
    Column("holder", String(32)),  # the id of an exporter; NULL if the lease is free
    Column("epoch", BigInteger, nullable=False),  # how often it was taken
    Column("expires_at", Float, nullable=False),
)

# Messages to the holder of an account's lease about changes by other exporters.
notices: Final = Table(
    "notices",
    metadata,
    Column("id", _Row, primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),
    Column("call_id", BigInteger),  # NULL if the totals of the account changed
    Column("notice", String(16), nullable=False),
    Index("notices_account", "account_id"),
    sqlite_autoincrement=True,
)

# Pending notifications of finished calls; see `exporter.ledger.outbox`.
notifications: Final = Table(
    "notifications",
    metadata,
    Column("id", _Row, primary_key=True),
    Column("target", String(64), nullable=False),
    Column("call", Text, nullable=False),  # `FinishedCall` as JSON
    Column("queued_at", Float, nullable=False),
    Column("give_up_at", Float, nullable=False),
    Column("due_at", Float, nullable=False),  # of a claimed one, the end of the claim
    Column("attempts", Integer, nullable=False),
    Column("account", String(64), nullable=False, server_default="?"),
    Column("retry", Boolean, nullable=False, server_default=false()),  # an attempt failed
    Column("claimed", Boolean, nullable=False, server_default=false()),  # an exporter sends it
    Column("answer", String(200)),  # the last one of the target: outcome and problem
    Column("call_id", BigInteger),  # NULL if an older exporter has written it
    Index("notifications_due", "target", "due_at"),
    Index("notifications_turns", "target", "retry", "account", "due_at"),
    Index("notifications_overdue", "target", "give_up_at"),
    # Row ids are never reused: a late result cannot affect another notification.
    sqlite_autoincrement=True,
)

# Notifications that were given up, and may be sent again by hand, under the row ids that they had
# in `notifications`; see `exporter.ledger.notifications`.
given_up_notifications: Final = Table(
    "given_up_notifications",
    metadata,
    Column("id", _Row, primary_key=True, autoincrement=False),
    Column("target", String(64), nullable=False),
    Column("account", String(64), nullable=False),
    Column("call", Text, nullable=False),
    Column("call_id", BigInteger),
    Column("attempts", Integer, nullable=False),
    Column("answer", String(200)),
    Column("gave_up_at", Float, nullable=False),
    Index("given_up_notifications_newest", "target", "gave_up_at"),
    Index("given_up_notifications_oldest", "gave_up_at"),
)

canaries: Final = Table(
    "canaries",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    # When it was added to the configuration; NULL if it is not configured, as below.
    Column("since", BigInteger),
    # Due times up to then were placed or counted as missed.
    Column("seen_until", BigInteger),
    # Of the last run, except limited and missed ones. Durations are in seconds.
    Column("success", Boolean),
    Column("last_success_at", Float),
    Column("accepted_seconds", Float),
    Column("finished_seconds", Float),
)

# Canary calls that were due. A row is committed before the request is sent, so that a call is
# placed at most once. Phone numbers are not stored.
canary_runs: Final = Table(
    "canary_runs",
    metadata,
    Column("id", _Row, primary_key=True),
    Column("canary_id", Integer, ForeignKey("canaries.id"), nullable=False),
    Column("due_at", BigInteger, nullable=False),
    Column("account", String(64), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("expect", String(16), nullable=False),  # as configured at that time
    Column("expect_key", String(8)),
    Column("started_at", Float, nullable=False),
    Column("deadline_at", Float, nullable=False),  # for the result
    Column("reference_id", String(128)),  # NULL until the provider has accepted the call
    Column("accepted_at", Float),
    # NULL while the run is open, which every end checks.
    Column("result", String(16)),
    Column("status", String(16)),
    Column("code", String(8)),
    Column("ended_at", Float),
    UniqueConstraint("canary_id", "due_at"),
    Index("canary_runs_open", "id", **_where("result IS NULL")),
    sqlite_autoincrement=True,
)

# The values of `esms_canary_runs_total`; never pruned.
canary_totals: Final = Table(
    "canary_totals",
    metadata,
    Column("canary_id", Integer, ForeignKey("canaries.id"), primary_key=True),
    Column("result", String(16), primary_key=True),
    Column("runs", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
