from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.ledger.engine import Database, open_database
from exporter.ledger.store import Store
from tests.databases import Server, postgresql


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    with postgresql() as server:
        yield server


@pytest.fixture
def shared_url(server: Server) -> Iterator[str]:
    """A database of PostgreSQL that is empty."""
    with server.database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, path: Path) -> Iterator[Database]:
    """A ledger that is new, on every engine."""
    if request.param == "sqlite":
        url = f"sqlite:///{path}"
    else:
        url = request.getfixturevalue("shared_url")
    database = open_database(url)
    yield database
    database.close()


@pytest.fixture
def store(database: Database) -> Store:
    return Store(database)
