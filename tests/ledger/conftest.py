from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import event, make_url

from exporter.ledger.clock import LedgerClock
from exporter.ledger.engine import Database, open_database
from exporter.ledger.schema import metadata
from exporter.ledger.store import Store
from tests.databases import Server, pgbouncer
from tests.ledger.machine import Machine


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def empty_url(server: Server) -> Iterator[str]:
    """A database of PostgreSQL in which nothing is yet."""
    with server.database() as url:
        yield url


@pytest.fixture
def machine() -> Machine:
    return Machine(1_760_000_000.0)


@pytest.fixture(scope="package")
def bouncer(server: Server) -> Iterator[Server]:
    """A PgBouncer that hands each transaction to another connection."""
    with pgbouncer(server, connections=8) as bouncer:
        yield bouncer


@pytest.fixture(scope="package")
def used_url(server: Server, bouncer: Server) -> Iterator[str]:
    """A ledger on PostgreSQL with what tests have left in it: to make one takes a second.

    It is behind the PgBouncer, as is every test of exporters that share a ledger.
    """
    with server.database() as url:
        behind = make_url(url).set(port=make_url(bouncer.url).port)
        name = behind.render_as_string(hide_password=False)
        open_database(name).close()
        yield name


@pytest.fixture
def shared_url(server: Server, used_url: str) -> str:
    """A ledger on PostgreSQL in which nothing is yet."""
    tables = metadata.tables.keys() - {"alembic_version", "compatibility"}
    server.execute(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY", url=used_url)
    return used_url


@pytest.fixture(scope="package")
def empty_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger in a file in which nothing is yet, to be copied."""
    path = tmp_path_factory.mktemp("empty") / "ledger.db"
    open_database(f"sqlite:///{path}").close()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, path: Path) -> str:
    """A ledger in which nothing is yet, on every engine."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("shared_url"))
    shutil.copy(request.getfixturevalue("empty_file"), path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgresql"])
def old_url(request: pytest.FixtureRequest, path: Path) -> str:
    """The address of an empty database, on every engine."""
    if request.param == "sqlite":
        return f"sqlite:///{path}"
    return str(request.getfixturevalue("empty_url"))


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = open_database(url)
    yield database
    database.close()


@pytest.fixture
def clock(machine: Machine) -> LedgerClock:
    return LedgerClock(machine)


@pytest.fixture
def store(database: Database, clock: LedgerClock) -> Store:
    return Store(database, clock)


@pytest.fixture
def statements(database: Database) -> list[str]:
    """The statements that are sent to the database."""
    sent: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
    return sent


@pytest.fixture
def shared(shared_url: str) -> Iterator[Callable[[], Database]]:
    """Open a ledger on PostgreSQL as one more exporter does."""
    opened: list[Database] = []

    def one_more() -> Database:
        opened.append(open_database(shared_url))
        return opened[-1]

    yield one_more
    for database in opened:
        database.close()
