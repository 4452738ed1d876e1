"""The oldest revision that can be upgraded. `exporter.ledger.schema` creates new ledgers."""

from __future__ import annotations

revision = "0010"
down_revision = None
