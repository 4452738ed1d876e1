"""Runs the migrations on the connection that the ledger hands over."""

from __future__ import annotations

from alembic import context

connection = context.config.attributes["connection"]
# SQLite alters a table by making it anew; "batch" does that where it is needed.
context.configure(connection=connection, render_as_batch=True, transaction_per_migration=False)
context.run_migrations()
