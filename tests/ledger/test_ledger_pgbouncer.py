"""Exporters behind a PgBouncer that hands each transaction to another connection."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from sqlalchemy import make_url, text

from exporter.calls import CallState, PollAgain
from exporter.errors import LedgerError
from exporter.ledger.engine import open_database
from exporter.ledger.listing import page
from exporter.ledger.records import FORGET, HASTEN
from exporter.ledger.sharing import Sharing, Wish
from exporter.ledger.store import Store
from exporter.ledger.totals import Total
from tests.databases import Server, pgbouncer
from tests.ledger.racing import joined, together
from tests.ledger.test_ledger_store import BUSY, NOW, OTP, finish, ids, new, observed, push

CONNECTIONS = 2


@pytest.fixture(scope="module")
def bouncer(server: Server) -> Iterator[Server]:
    with pgbouncer(server, CONNECTIONS) as bouncer:
        yield bouncer


@pytest.fixture
def bounced(bouncer: Server, empty_url: str) -> str:
    """An empty database, by way of PgBouncer."""
    port = make_url(bouncer.url).port
    return make_url(empty_url).set(port=port).render_as_string(hide_password=False)


def test_everything_that_one_exporter_does(bounced: str) -> None:
    database = open_database(bounced)
    store = joined(database)
    (a, b), *_ = store.watch("file:a", [new("a", OTP), new("b")], NOW)
    assert store.push([[new("A"), new("c")]], NOW).counts == [(1, 1)]
    store.commit([observed(a, BUSY), observed(b, PollAgain(CallState.QUEUED))])
    store.set_price(a.call.id, 350.0)
    assert store.keep(a.call.id)
    assert store.sources() == ["file:a"]
    assert store.keep_only("file:a", {a.call.id}) == [b.call.id]
    assert ids(store.unfinished("main")) == ["c"]
    assert [found.reference_id for found in page(database, ["main"]).records] == ["a", "c"]
    assert (found := store.find("main", "A")) is not None
    assert found.result == "success"
    assert [call.reference_id for call in store.recent(NOW).calls] == ["a"]
    assert store.delete(store.unfinished("main")[0].call.id, NOW)
    assert store.prune(NOW + 9_000) == 1
    totals = store.snapshot().totals
    assert sum(v for c, v in totals.items() if c.total is Total.PRICE) == 350.0
    store.close()


def test_exporters_that_are_more_than_connections(bounced: str) -> None:
    stores = [joined(open_database(bounced)) for _ in range(3)]
    sharings = [Sharing(store._database) for store in stores]

    def work(number: int) -> int:
        store, sharing = stores[number], sharings[number]
        assert store.replica is not None
        finished = 0
        since = store.snapshot().since
        for n in range(20):
            wanted = [new(f"c{n}-{m}", {"n": str(m % 2)}) for m in range(9)]
            mine = store.watch(None, wanted, NOW).added
            sharing.release(store.replica, [call.call.id for call in mine[::2]])
            claimed = sharing.claim(store.replica, ["main"], []).calls
            for call in claimed:
                store.tell(call.call.id, HASTEN)
            held = store.unfinished("main")
            finished += store.commit([observed(call, BUSY) for call in held]).finished
            assert len(sharing.reserve([Wish("main", 1, 0.001)], 0.0)) == 1
            assert sharing.beat(store.replica, "peers", n, 60, 0.0) is not None
            assert sharing.messages(store.replica, []) == []
            since = sharing.changes(since, []).since
        sharing.forget_ended()
        return finished

    finished = sum(together(*(partial(work, number) for number in range(3))))
    finish(stores[0], *stores[0].unfinished("main"))
    totals = stores[0].snapshot().totals
    counted = sum(v for c, v in totals.items() if c.total is Total.CALLS)
    assert finished <= counted <= 180
    with stores[0]._database.begin() as connection:
        query = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name")
        assert connection.scalar(query, {"name": "esms-exporter"}) <= CONNECTIONS
    (call,) = push(stores[0], new("told"))
    stores[1].delete(call.call.id, NOW)
    assert stores[0].replica is not None
    told = [said[1:] for said in sharings[0].messages(stores[0].replica, [])]
    assert told == [(call.call.id, FORGET)]
    for store in stores:
        store.close()


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"password": "wrong"}, "refuses the user or the password"),
        ({"username": "nobody"}, "refuses the user or the password"),
        ({"database": "none"}, "does not exist; create the database"),
    ],
)
def test_what_cannot_be_opened(bouncer: Server, part: dict[str, str], said: str) -> None:
    url = make_url(bouncer.url).set(**part)  # type: ignore[arg-type]
    with pytest.raises(LedgerError, match=said):
        open_database(url.render_as_string(hide_password=False))


def test_a_bouncer_that_was_restarted(bouncer: Server, bounced: str) -> None:
    store = Store(open_database(bounced))
    push(store, new("before"))
    bouncer.stop()
    with pytest.raises(LedgerError, match="nobody listens there"):
        push(store, new("meanwhile"))
    bouncer.start()
    push(store, new("after"))
    assert ids(store.unfinished("main")) == ["before", "after"]
    store.close()
