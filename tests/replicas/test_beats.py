"""Whether an exporter beats, whatever else it has to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from exporter.config import AccountConfig, Config, LedgerConfig
from exporter.replicas.replica import Replica
from exporter.secret import Secret
from exporter.service import Service
from tests.databases import Server, postgresql
from tests.waiting import until


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql() as server:
        yield server


@pytest_asyncio.fixture
async def service(server: Server) -> AsyncIterator[Service]:
    with server.database() as url:
        config = Config(
            accounts=(AccountConfig(name="main", api_key=Secret("key"), secret_key=Secret("s")),),
            ledger=LedgerConfig(url=Secret(url.replace("+psycopg", "")), heartbeat=1),
            shutdown_timeout=1,
        )
        service = Service(lambda: config)
        try:
            await service.open()
            await service.start()
            yield service
        finally:
            await service.stop()


def _replica(service: Service) -> Replica:
    assert service._replica is not None
    return service._replica


async def test_it_beats_while_the_ledger_has_much_to_do(service: Service) -> None:
    replica, loop = _replica(service), asyncio.get_running_loop()
    await until(lambda: replica._lease.until > loop.time())
    busy = asyncio.create_task(service.ledger.call(time.sleep, 3))
    await asyncio.sleep(0)
    replica._recount_at = -1
    while not busy.done():
        await asyncio.sleep(0.05)
        assert replica._lease.until > loop.time()
    await until(lambda: replica._recount_at > 0)
    # What an answer was lost of is looked up.
    busy = asyncio.create_task(service.ledger.call(time.sleep, 3))
    await asyncio.sleep(0)
    service.metrics.ledger_errors.labels().value += 1
    while not busy.done():
        await asyncio.sleep(0.05)
        assert replica._lease.until > loop.time()
    await until(lambda: replica._errors == 1)
    assert service.metrics.evictions.labels().value == 0
