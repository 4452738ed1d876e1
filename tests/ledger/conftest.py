from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.ledger.engine import Database
from exporter.ledger.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(Database(f"sqlite:///{path}"))
    yield store
    store.close()
