"""Ledgers on PostgreSQL that cannot be used, or come and go, each with what is said of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import pytest
from sqlalchemy import Connection, make_url, text

from exporter.errors import LedgerError
from exporter.ledger.engine import open_database
from exporter.ledger.store import Store
from tests.databases import PASSWORD, Server, postgresql
from tests.ledger.racing import together
from tests.ledger.test_ledger_store import ids, new, push, rows
from tests.waiting import DEADLINE

USER = "made_up_user"
SOCKET = "/nonexistent/made-up-socket"


def to(url: str, **parts: object) -> str:
    """Return an address with other parts."""
    return make_url(url).set(**parts).render_as_string(hide_password=False)  # type: ignore[arg-type]


def problem(url: str) -> str:
    """Return what is said of a ledger that cannot be opened."""
    with pytest.raises(LedgerError) as caught:
        open_database(url)
    return told(caught.value, url)


def told(error: LedgerError, url: str) -> str:
    """Return what is said of a ledger: nothing of its address and of its users."""
    said, parsed = str(error), make_url(url)
    assert PASSWORD not in said
    assert USER not in said
    assert "://" not in said
    assert "\n" not in said
    for part in (parsed.host, f":{parsed.port}", parsed.database, SOCKET):
        assert f"{part}" not in said
    assert error.__cause__ is None
    assert said.startswith("ledger: ")
    return said.removeprefix("ledger: ")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"password": "wrong"}, "refuses the user or the password; see `ledger.url` and"),
        ({"username": USER}, "refuses the user or the password; see `ledger.url` and"),
        ({"database": "refused"}, "does not exist; create the database"),
        ({"host": None, "query": {"host": SOCKET}}, "cannot be reached, or refuses the user"),
        ({"port": 1}, "refuses connections; check that the server runs"),
        ({"host": "password.invalid"}, "its host cannot be found; see `ledger.url`"),
        ({"query": {"sslmode": "require"}}, "no connection over TLS; see `sslmode`"),
        ({"query": {"sslmode": PASSWORD}}, "`ledger.url` has an option that libpq does not"),
        ({"query": {PASSWORD: "1"}}, "`ledger.url` has an option that libpq does not"),
    ],
)
def test_a_server_that_cannot_be_reached(
    server: Server, bouncer: Server, parts: dict[str, object], said: str
) -> None:
    for url in (server.url, bouncer.url):
        assert problem(to(url, **parts)).startswith(said)


def test_a_bouncer_that_was_restarted(bouncer: Server, shared_url: str) -> None:
    store = Store(open_database(shared_url))
    push(store, new("before"))
    bouncer.stop()
    with pytest.raises(LedgerError, match="refuses connections"):
        push(store, new("meanwhile"))
    bouncer.start()
    push(store, new("after"))
    assert ids(store.unfinished("main")) == ["before", "after"]
    store.database.close()


def test_a_user_that_may_not_make_tables(server: Server, empty_url: str) -> None:
    server.execute(f"CREATE USER {USER} PASSWORD '{PASSWORD}'")
    assert problem(to(empty_url, username=USER)) == (
        "may not be used by this user; grant it the right to create and write tables "
        "(InsufficientPrivilege, 42501)"
    )


@pytest.mark.parametrize("made", [False, True], ids=["empty", "made"])
def test_a_server_that_is_read_only(server: Server, empty_url: str, *, made: bool) -> None:
    if made:
        open_database(empty_url).close()
    name = make_url(empty_url).database
    server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert problem(empty_url) == (
        "cannot be written: the server is a standby, or read-only; name the primary "
        "(ReadOnlySqlTransaction, 25006)"
    )


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
def test_exporters_that_start_together_upgrade_once(
    server: Server, empty_url: str, isolation: str
) -> None:
    name = make_url(empty_url).database
    server.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")
    for database in together(*[partial(open_database, empty_url)] * 4):
        assert database.run(Store(database).snapshot).totals == {}
        database.close()


@pytest.fixture(scope="module")
def mortal() -> Iterator[Server]:
    """A server that may be stopped."""
    with postgresql() as server:
        yield server


@pytest.fixture
def store_there(mortal: Server) -> Iterator[Store]:
    with mortal.database() as url:
        store = Store(open_database(url))
        yield store
        store.database.close()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
def test_a_server_that_was_restarted_is_not_noticed(
    mortal: Server, store_there: Store, end: int
) -> None:
    push(store_there, new("before"))
    mortal.stop(end)
    mortal.start()
    push(store_there, new("after"))
    assert ids(store_there.unfinished("main")) == ["before", "after"]


def test_a_server_that_is_away(mortal: Server, store_there: Store) -> None:
    mortal.stop()
    url = str(store_there.database.engine.url)
    try:
        for _ in range(2):
            with pytest.raises(LedgerError) as caught:
                push(store_there, new("a"))
            assert told(caught.value, url).startswith("refuses connections; check that")
    finally:
        mortal.start()
    assert ids(push(store_there, new("a"))) == ["a"]


def end_connection(server: Server, pid: int) -> None:
    server.execute(f"SELECT pg_terminate_backend({pid}, 5000)")


def kill(_server: Server, pid: int) -> None:
    """Have the server end all its connections, as when one of its processes was killed."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL)


@pytest.mark.parametrize("last", [False, True], ids=["in the middle", "before the end"])
@pytest.mark.parametrize(
    ("end", "said"),
    [
        (end_connection, "is being stopped or started (AdminShutdown, 57P01)"),
        (kill, "the connection broke (OperationalError)"),
    ],
)
def test_a_connection_that_breaks(
    mortal: Server, store_there: Store, end: Callable[[Server, int], None], said: str, *, last: bool
) -> None:
    database = store_there.database

    def write() -> None:
        with database.begin() as connection:
            connection.execute(text("INSERT INTO accounts (name) VALUES ('lost')"))
            end(mortal, int(connection.scalar(text("SELECT pg_backend_pid()")) or 0))
            if not last:
                connection.execute(text("SELECT 1"))

    with pytest.raises(LedgerError) as caught:
        write()
    assert told(caught.value, str(database.engine.url)) == said
    mortal.wait()
    with database.begin() as connection:
        assert connection.scalar(text("SELECT count(*) FROM accounts")) == 0


def test_a_statement_that_takes_too_long(store_there: Store) -> None:
    sleep = text("SET LOCAL statement_timeout = '10ms'; SELECT pg_sleep(60)")
    with pytest.raises(LedgerError) as caught:
        store_there.database.run(lambda connection: connection.execute(sleep))
    said = "took too long; check the server's load ("
    assert told(caught.value, str(store_there.database.engine.url)).startswith(said)
    push(store_there, new("next"))


def test_an_exporter_that_was_blocked_in_a_transaction_tries_again(store_there: Store) -> None:
    pids = list[int]()

    def stall_once(connection: Connection) -> None:
        connection.execute(text("INSERT INTO accounts (name) VALUES ('a')"))
        pids.append(connection.scalars(text("SELECT pg_backend_pid()")).one())
        if len(pids) == 1:
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '10ms'"))
            end = time.monotonic() + DEADLINE
            while rows(store_there, f"SELECT 1 FROM pg_stat_activity WHERE pid = {pids[0]}"):
                assert time.monotonic() < end
                time.sleep(0.05)

    store_there.database.run(stall_once)
    assert len(pids) == 2
    assert rows(store_there, "SELECT name FROM accounts") == [("a",)]


def test_nothing_stays_set_of_a_transaction(store_there: Store) -> None:
    """What a pooler hands on to others is as it was."""
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    with store_there.database.begin() as connection:
        set_here = [connection.scalar(text(f"SHOW {name}")) for name in names]
        connection.exec_driver_sql("COMMIT")
        assert [connection.scalar(text(f"SHOW {name}")) for name in names] == ["0", "0", "0"]
    assert set_here == ["1min", "10s", "5s"]
