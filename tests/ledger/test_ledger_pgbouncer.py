"""Exporters behind a PgBouncer that hands each transaction to another connection."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from sqlalchemy import make_url, text

from exporter.calls import CallState, PollAgain
from exporter.errors import LedgerError
from exporter.ledger import leases
from exporter.ledger.calls import find_call, list_calls, list_sources, prune_finished, recent_calls
from exporter.ledger.engine import open_database
from exporter.ledger.leases import FORGET, POLL_NOW
from exporter.ledger.store import Store
from exporter.ledger.totals import TotalKind
from tests.databases import Server, pgbouncer
from tests.ledger.racing import together
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
    store = Store(database)
    (a, b), *_ = store.watch("file:a", [new("a", OTP), new("b")], NOW)
    assert store.push([[new("A"), new("c")]], NOW).counts == [(1, 1)]
    store.commit([observed(a, BUSY), observed(b, PollAgain(CallState.QUEUED))])
    store.set_price(a.call.id, 350.0)
    assert store.keep(a.call.id)
    assert store.database.run(list_sources) == ["file:a"]
    assert store.keep_only("file:a", {a.call.id}) == [b.call.id]
    assert ids(store.unfinished("main")) == ["c"]
    assert [found.reference_id for found in list_calls(database, ["main"]).records] == ["a", "c"]
    assert (found := store.database.run(find_call, "main", "A")) is not None
    assert found.result == "success"
    assert [call.reference_id for call in store.database.run(recent_calls, NOW).calls] == ["a"]
    assert store.delete(store.unfinished("main")[0].call.id, NOW)
    assert store.database.run(prune_finished, NOW + 9_000) == 1
    totals = store.snapshot().totals
    assert sum(v for c, v in totals.items() if c.total is TotalKind.PRICE) == 350.0
    store.database.close()


def test_exporters_that_are_more_than_connections(bounced: str) -> None:
    stores = [Store(open_database(bounced)) for _ in range(3)]
    stores[0].database.run(leases.add_leases, ["main"])

    def work(number: int) -> int:
        store = stores[number]
        run, me, finished = store.database.run, store.exporter or "", 0
        for n in range(20):
            store.watch(None, [new(f"c{n}-{m}", {"n": str(m % 2)}) for m in range(9)], NOW)
            run(leases.renew_leases, me, f"exporter-{number}", ["main"], ["main"], 60)
            assert run(leases.read_leases).exporters
            run(leases.take_leases, me, ["main"], 60)
            claimed = run(leases.look, me, ["main"], []).claimed
            for call in claimed:
                run(leases.notify_holders, me, [call.call.id], POLL_NOW)
            finished += store.commit([observed(call, BUSY) for call in claimed]).finished
            run(leases.give_up_leases, me, ["main"])
        return finished

    finished = sum(together(*(partial(work, number) for number in range(3))))
    finish(stores[0], *stores[0].unfinished("main"))
    totals = stores[0].snapshot().totals
    counted = sum(v for c, v in totals.items() if c.total is TotalKind.CALLS)
    assert finished <= counted <= 180
    with stores[0].database.begin() as connection:
        query = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name")
        assert connection.scalar(query, {"name": "esms-exporter"}) <= CONNECTIONS
    run, me = stores[0].database.run, stores[0].exporter or ""
    assert run(leases.take_leases, me, ["main"], 60)
    (call,) = push(stores[0], new("told"))
    stores[1].delete(call.call.id, NOW)
    (notice,) = run(leases.look, me, ["main"], []).notices
    assert notice[1:] == ("main", call.call.id, FORGET)
    for store in stores:
        store.database.close()


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
    with pytest.raises(LedgerError, match="refuses connections"):
        push(store, new("meanwhile"))
    bouncer.start()
    push(store, new("after"))
    assert ids(store.unfinished("main")) == ["before", "after"]
    store.database.close()
