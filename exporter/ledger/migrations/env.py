"""Alembic's environment: runs the migrations on the connection of the ledger."""

from __future__ import annotations

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection)
context.run_migrations()
