"""What one of several exporters does by itself: it beats, whatever else it has to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from exporter.app import App
from exporter.calls import CallbackOutcome
from exporter.config import AccountConfig, Config, LedgerConfig
from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.ids import reference_id
from exporter.ledger.records import NewCall
from exporter.replicas.replica import Replica
from exporter.secrets import Secret
from tests.databases import Server, postgresql
from tests.samples import value
from tests.waiting import until


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql() as server:
        yield server


@pytest_asyncio.fixture
async def service(server: Server) -> AsyncIterator[App]:
    with server.database() as url:
        config = Config(
            accounts=(AccountConfig(name="main", api_key=Secret("key"), secret_key=Secret("s")),),
            ledger=LedgerConfig(url=Secret(url.replace("+psycopg", "")), heartbeat=4),
            shutdown_timeout=1,
        )
        service = App(lambda: config)
        try:
            await service.open()
            await service.start()
            yield service
        finally:
            await service.stop()


def _replica(service: App) -> Replica:
    assert service._replica is not None
    return service._replica


async def test_it_beats_while_the_ledger_has_much_to_do(service: App) -> None:
    replica, loop = _replica(service), asyncio.get_running_loop()
    await until(lambda: replica._lease.until > loop.time())
    busy = asyncio.create_task(service.ledger.call(time.sleep, 6))
    await asyncio.sleep(0)
    replica._recount_at = -1
    while not busy.done():
        await asyncio.sleep(0.05)
        assert replica._lease.until > loop.time()
    await until(lambda: replica._recount_at > 0)
    # What an answer was lost of is looked up.
    busy = asyncio.create_task(service.ledger.call(time.sleep, 6))
    await asyncio.sleep(0)
    service.ledger.count_error()
    while not busy.done():
        await asyncio.sleep(0.05)
        assert replica._lease.until > loop.time()
    await until(lambda: replica._errors == 1)
    assert value(service.metrics, "esms_replica_evictions_total") == 0


async def test_nobody_is_told_of_a_callback_whose_call_is_polled_here(
    service: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = service.ledger.store
    monkeypatch.setattr(service.accounts["main"].poller, "wake", lambda: None)
    await service.calls.push([[NewCall("main", reference_id("mine"), {})]])
    call = await service.calls.find("main", reference_id("mine"))
    assert call
    told: list[int] = []
    monkeypatch.setattr(store, "tell", lambda row, _: told.append(row))
    busy = Answer(Outcome.OK, "100", send_status=5, sent_result=1, call_status="BUSY")
    assert await service.calls.accept(call, busy) is CallbackOutcome.ACCEPTED
    assert not told
