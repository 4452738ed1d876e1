"""The tables of the ledger. `migrations/` brings a database of any age to this shape."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
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
    text,
)

HEAD: Final = "0003"
"""The newest revision under `migrations/versions`."""

metadata: Final = MetaData()

accounts: Final = Table(
    "accounts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
)

# Calls and totals share few sets of labels. Sets are kept whole, whatever `watch.labels` shows of
# them, so that changing the names loses nothing.
label_sets: Final = Table(
    "label_sets",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("labels", Text, nullable=False, unique=True),  # JSON object, keys sorted
)

calls: Final = Table(
    "calls",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),
    Column("reference_key", String(128), nullable=False),  # as ids are compared
    Column("reference_id", String(128), nullable=False),  # as it was first written
    Column("label_set_id", Integer, ForeignKey("label_sets.id"), nullable=False),
    # Handed over by a source that says each call once, and does not take it back by silence.
    Column("pushed", Boolean, nullable=False, server_default=false()),
    Column("first_watched", Float, nullable=False),  # Unix times, here and below
    Column("state", String(24), nullable=False),
    Column("state_since", Float, nullable=False),
    # NULL until the call has finished, which is the guard of every finish; or `deleted`.
    Column("result", String(16)),
    Column("status", String(16)),
    Column("duration", Float),  # seconds
    Column("key", String(8)),
    Column("finished_at", Float),
    # When it was last handed over again, of late: what is named still is not to be forgotten.
    Column("named_at", Float),
    Column("price", Float),  # VND, as the provider's callback told it
    UniqueConstraint("account_id", "reference_key"),
    Index("calls_unfinished", "account_id", "id", sqlite_where=text("result IS NULL")),
    Index("calls_finished", "finished_at", sqlite_where=text("result IS NOT NULL")),
    # A row's number is never used again: an answer that is late cannot hit another call.
    sqlite_autoincrement=True,
)

# Which configuration or file names a call now. A call that none names any more is let go.
call_sources: Final = Table(
    "call_sources",
    metadata,
    Column("source", String(255), primary_key=True),
    Column("call_id", Integer, ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True),
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
    sqlite_with_rowid=False,
)
