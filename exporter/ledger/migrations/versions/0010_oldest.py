"""The oldest shape that can be upgraded. New ledgers are made by `exporter.ledger.schema`."""

from __future__ import annotations

revision = "0010"
down_revision = None
