"""The tables of the ledger, as new ones are made; `migrations/` brings older ones to this shape."""

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

HEAD: Final = "0013"
"""The newest revision under `migrations/versions`."""

LEASES: Final = "0013"
"""From this revision on, exporters share the ledger by leases."""

OLDEST: Final = "0010"
"""The oldest revision that can be upgraded."""

metadata: Final = MetaData()


def _where(condition: str) -> dict[str, Any]:  # Any: arguments of an index
    return {f"{engine}_where": text(condition) for engine in ("sqlite", "postgresql")}


# SQLite numbers rows by itself only where the type is INTEGER, which has 64 bits there.
_Row: Final = BigInteger().with_variant(Integer, "sqlite")

# The revision of the shape, in the only row, as Alembic keeps it.
alembic_version: Final = Table(
    "alembic_version", metadata, Column("version_num", String(32), primary_key=True)
)

# The newest exporters may leave a database in a shape that older ones can go on with, so that they
# can be replaced one after the other.
compatibility: Final = Table(
    "compatibility",
    metadata,
    Column("oldest_user", String(32), primary_key=True),  # a revision, in the only row
)

accounts: Final = Table(
    "accounts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
)

# Sets are kept whole, whatever `watch.labels` shows of them, so that changing the names loses
# nothing; and as long as a call or a total refers to them.
label_sets: Final = Table(
    "label_sets",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("labels", Text, nullable=False, unique=True),  # JSON object, keys sorted
)

# The sets of labels that have totals of their own, by account: within `watch.max_label_values` and
# `watch.max_label_sets`.
counted_labels: Final = Table(
    "counted_labels",
    metadata,
    Column("label_set_id", Integer, ForeignKey("label_sets.id"), primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), primary_key=True),
    # The order of their last use; no time, because clocks are set.
    Column("used", BigInteger, nullable=False),
    Index("counted_labels_used", "account_id", "used"),
    sqlite_with_rowid=False,
)

# The sets that made room: their calls are added to the totals of another set.
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
    Column("normalized_id", String(128), nullable=False),  # as ids are compared
    Column("reference_id", String(128), nullable=False),  # as it was first written
    Column("label_set_id", Integer, ForeignKey("label_sets.id"), nullable=False),
    # Handed over by a source that says each call once, and does not take it back by silence.
    Column("pushed", Boolean, nullable=False, server_default=false()),
    # Unix times, here and below, by the ledger's clock: see `exporter.ledger.clock`.
    Column("first_watched", Float, nullable=False),
    Column("state", String(24), nullable=False),
    Column("state_since", Float, nullable=False),
    # NULL until the call has finished, which is the guard of every finish; or `deleted`.
    Column("result", String(16)),
    Column("status", String(16)),
    Column("duration", Float),  # seconds
    Column("key", String(8)),
    Column("finished_at", Float),
    # When it was last pushed again, of late, or its last name was lost: what is named still,
    # or was until a moment ago, is not to be forgotten.
    Column("named_at", Float),
    Column("price", Float),  # VND, as the provider's callback told it
    # The run of a canary that placed it: it counts in no total.
    Column("canary_run_id", BigInteger),
    # Of the lease under which it was claimed, where exporters share the ledger: one with an older
    # epoch is still to be claimed by the holder.
    Column("epoch", BigInteger, nullable=False, server_default=text("0")),
    UniqueConstraint("account_id", "normalized_id"),
    Index("calls_unfinished", "account_id", "id", **_where("result IS NULL")),
    Index("calls_finished", "finished_at", **_where("result IS NOT NULL")),
    Index("calls_labels", "label_set_id"),
    Index("calls_of_canaries", "canary_run_id", **_where("canary_run_id IS NOT NULL")),
    Index("calls_epoch", "account_id", "epoch", **_where("result IS NULL")).ddl_if("postgresql"),
    # A row's number is never used again: an answer that is late cannot hit another call.
    sqlite_autoincrement=True,
)

UNFINISHED_ROW: Final = func.coalesce(calls.c.result, "") == ""
"""Says of calls that are found by their rows that they have not finished. PostgreSQL must not be
led to the index of those: where it knows little of the table, it would read all of them."""

# Which configuration or file names a call now. A call that none names any more is removed.
call_sources: Final = Table(
    "call_sources",
    metadata,
    # A path may be longer, which SQLite takes.
    Column("source", String(255).with_variant(Text(), "postgresql"), primary_key=True),
    Column("call_id", _Row, ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True),
    Index("call_sources_call", "call_id"),
    sqlite_with_rowid=False,
)

# Everything that the metrics of finished calls are made of; never pruned.
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

# How far the ledger's clock was ahead of the machine's when they were last looked at, in the only
# row; see `exporter.ledger.clock`. Exporters that share a ledger have its server's clock.
clock_marks: Final = Table(
    "clock_marks",
    metadata,
    Column("ahead", Float, nullable=False),
    Column("wall", Float, nullable=False),
    Column("steady", Float, nullable=False),
    Column("boot", String(64), nullable=False),
)

# Up to when queries have read their databases.
cursors: Final = Table(
    "cursors",
    metadata,
    Column("source", String(80), primary_key=True),  # `sql:NAME`
    Column("query", String(64), nullable=False),  # a digest of what was asked, and of whom
    Column("read_until", Float, nullable=False),  # by the clock of that database
    sqlite_with_rowid=False,
)

# The exporters that share the ledger. Times here and in `leases` are the server's.
exporters: Final = Table(
    "exporters",
    metadata,
    Column("id", String(32), primary_key=True),  # of the process
    Column("name", String(255), nullable=False),  # for people
    Column("accounts", Text, nullable=False),  # that it wants to poll: a JSON list of names
    Column("expires_at", Float, nullable=False),
    sqlite_with_rowid=False,
)

# The right to poll an account, which one exporter has at a time.
leases: Final = Table(
    "leases",
    metadata,
    Column("account_id", Integer, ForeignKey("accounts.id"), primary_key=True),
    Column("holder", String(32)),  # an exporter's id; NULL once it was given up
    Column("epoch", BigInteger, nullable=False),  # how often it was taken
    Column("expires_at", Float, nullable=False),
)

# What the holder of an account's lease has to know of what other exporters did.
notices: Final = Table(
    "notices",
    metadata,
    Column("id", _Row, primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),
    Column("call_id", BigInteger),  # NULL for what concerns the account's totals
    Column("notice", String(16), nullable=False),
    Index("notices_account", "account_id"),
    sqlite_autoincrement=True,
)

# Notifications of finished calls that are not delivered yet; see `exporter.ledger.outbox`.
notifications: Final = Table(
    "notifications",
    metadata,
    Column("id", _Row, primary_key=True),
    Column("target", String(64), nullable=False),
    Column("call", Text, nullable=False),  # JSON, as it finished
    Column("queued_at", Float, nullable=False),  # by the ledger's clock, as below
    Column("give_up_at", Float, nullable=False),
    Column("due_at", Float, nullable=False),  # or, once it is claimed, when that ends
    Column("attempts", Integer, nullable=False),
    Column("account", String(64), nullable=False, server_default="?"),
    Column("retry", Boolean, nullable=False, server_default=false()),  # an attempt has failed
    Index("notifications_due", "target", "due_at"),
    Index("notifications_turns", "target", "retry", "account", "due_at"),
    Index("notifications_overdue", "target", "give_up_at"),
    # Never used again: what is settled late cannot hit another one.
    sqlite_autoincrement=True,
)

canaries: Final = Table(
    "canaries",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    # Since when it has been configured; NULL where it is not, as below.
    Column("since", BigInteger),
    # Due times up to then were placed, or counted as missed.
    Column("seen_until", BigInteger),
    # Of its last call that told something, and how long its stages took, in seconds.
    Column("success", Boolean),
    Column("last_success_at", Float),
    Column("accepted_seconds", Float),
    Column("finished_seconds", Float),
)

# Canary calls that were due. A row is the intent, and the right, to place one: it is there before
# the request is sent. Without the phone number.
canary_runs: Final = Table(
    "canary_runs",
    metadata,
    Column("id", _Row, primary_key=True),
    Column("canary_id", Integer, ForeignKey("canaries.id"), nullable=False),
    Column("due_at", BigInteger, nullable=False),
    Column("account", String(64), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("expect", String(16), nullable=False),  # as it was configured then
    Column("expect_key", String(8)),
    Column("started_at", Float, nullable=False),
    Column("deadline_at", Float, nullable=False),  # when it has to have finished
    Column("reference_id", String(128)),  # once the provider has accepted it
    Column("accepted_at", Float),
    # NULL until it has ended, which is the guard of every end.
    Column("result", String(16)),
    Column("status", String(16)),
    Column("code", String(8)),
    Column("ended_at", Float),
    UniqueConstraint("canary_id", "due_at"),
    Index("canary_runs_open", "id", **_where("result IS NULL")),
    sqlite_autoincrement=True,
)

# What `esms_canary_runs_total` shows; never pruned.
canary_totals: Final = Table(
    "canary_totals",
    metadata,
    Column("canary_id", Integer, ForeignKey("canaries.id"), primary_key=True),
    Column("result", String(16), primary_key=True),
    Column("runs", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
