"""Several exporters on one PostgreSQL: one is killed, and the server hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest_asyncio
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from exporter.simulator import Account, Plan, Reply, Simulator
from tests.databases import PASSWORD, Server
from tests.e2e.processes import Exporter, configure, listed, total
from tests.subprocesses import UNMEASURED
from tests.waiting import DEADLINE, deadline, until

RATE = 10
ACCOUNTS = ("main", "b", "c", "d", "e", "f")
CALLS = {f"call-{number}": ACCOUNTS[number % len(ACCOUNTS)] for number in range(90)}
BACKENDS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'esms-exporter'"
HELD = """
    SELECT coalesce(split_part(e.name, ':', -1), ''), count(*)
    FROM leases l LEFT JOIN exporters e ON e.id = l.holder GROUP BY 1
"""


class Scene:
    """Exporters that share a ledger and calls without an end, and when which call was asked for."""

    def __init__(self, simulator: Simulator, folder: Path, url: str) -> None:
        self.asked: defaultdict[str, list[float]] = defaultdict(list)  # by account
        self.asked_for: defaultdict[str, list[float]] = defaultdict(list)  # by call
        self._simulator, self._folder, self._url = simulator, folder, url
        self._engine = create_engine(url, poolclass=NullPool)
        self._ends = AsyncExitStack()
        simulator.subscribe(self._add)
        for name, account in CALLS.items():
            simulator.add_call(account, name, Plan(queued=9e9))

    def _add(self, _: str, account: str, params: Mapping[str, str], __: Reply) -> None:
        now = time.monotonic()
        self.asked[account].append(now)
        self.asked_for[params.get("ReferenceId", "")].append(now)

    async def exporters(self, count: int) -> list[Exporter]:
        """Start exporters that share the accounts evenly, although the first has taken them all."""
        exporters = []
        for number in range(count):
            config = configure(
                *(self._folder, self._simulator),
                calls=[listed(name, account) for name, account in CALLS.items()],
                account={"rate_limit": RATE},
                file=f"{number}.yaml",
                polling={"interval": "1s", "max_interval": "2s"},
                ledger={"url": self._url.replace("+psycopg", ""), "heartbeat": "6s"},
                shutdown_timeout="2s",
            )
            exporters.append(Exporter(config, environ=UNMEASURED))
            self._ends.push_async_callback(exporters[-1].kill)
            await exporters[-1].start()
        for exporter in exporters:
            await exporter.ready()
        share = len(ACCOUNTS) // count
        await self.until_rows(HELD, lambda held: sorted(n for _, n in held) == [share] * count)
        return exporters

    async def until_rows(self, query: str, holds: Callable[[list[Any]], bool]) -> list[Any]:
        async with deadline():
            while not holds(rows := await asyncio.to_thread(self._rows, query)):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        return rows

    def _rows(self, query: str) -> list[Any]:
        with self._engine.begin() as connection:
            return list(connection.execute(text(query)))

    async def until_asked(self, names: list[str], since: float) -> None:
        await until(lambda: all(self.asked_for[name][-1:] > [since] for name in names))

    def most_in(self, account: str, seconds: float) -> int:
        """Return the most requests that any time of that length has seen."""
        asked = sorted(self.asked[account])
        most = first = 0
        for last, at in enumerate(asked):
            while asked[first] <= at - seconds:
                first += 1
            most = max(most, last - first + 1)
        return most

    async def end(self) -> None:
        await self._ends.aclose()


@pytest_asyncio.fixture
async def there(server: Server, tmp_path: Path) -> AsyncIterator[Scene]:
    accounts = [Account(name, f"key-{name}", "s") for name in ACCOUNTS]
    async with Simulator(accounts=accounts) as simulator:
        with server.database() as url:
            scene = Scene(simulator, tmp_path, url)
            yield scene
            await scene.end()


async def test_what_a_dead_replica_polled_is_polled_again(there: Scene) -> None:
    exporters = await there.exporters(3)

    def polled(samples: Mapping[Any, float]) -> set[str]:
        lease = "esms_account_lease"
        return {dict(of)["account"] for (name, of), v in samples.items() if name == lease and v}

    accounts = polled(await exporters[0].until(lambda found: len(polled(found)) == 2))
    await exporters[0].kill()
    killed = time.monotonic()
    orphans = [name for name, account in CALLS.items() if account in accounts]
    assert orphans
    await there.until_asked(orphans, killed + 0.5)
    await exporters[1].until(lambda found: total(found, "esms_replicas") == 2)
    for account in ACCOUNTS:  # each has calls for 15 requests a second
        assert there.most_in(account, 10) <= 1.2 * 10 * RATE
    assert PASSWORD not in "".join(exporter.output for exporter in exporters)


async def get(exporter: Exporter, path: str) -> tuple[int, str]:
    """Ask for a page; fail where it waits for a ledger that does not answer."""
    timeout = aiohttp.ClientTimeout(total=DEADLINE / 2)
    async with (
        aiohttp.ClientSession(timeout=timeout) as http,
        http.get(f"{exporter.url}{path}") as answer,
    ):
        return answer.status, await answer.text()


async def until_ready(exporter: Exporter, status: int) -> str:
    async with deadline():
        while (found := await get(exporter, "/-/ready"))[0] != status:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    return found[1]


def go_on(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # it has ended
            os.kill(pid, signal.SIGCONT)


async def test_a_server_that_hangs(there: Scene) -> None:
    ends = first, second = await there.exporters(2)
    # Each has two connections, and opens them when it needs them.
    hung = [pid for (pid,) in await there.until_rows(BACKENDS, lambda pids: len(pids) >= 4)]
    try:
        for pid in hung:
            os.kill(pid, signal.SIGSTOP)
        for exporter in ends:
            told = await until_ready(exporter, 503)
            assert "the ledger does not answer: other exporters may have taken over" in told
            assert (await get(exporter, "/-/healthy"))[0] == 200
            assert (await get(exporter, "/metrics"))[0] == 200
        stopped = time.monotonic() + 2  # those that were under way have come
        await asyncio.sleep(4)  # longer than the time between two polls of a call
        assert not [at for asked in there.asked.values() for at in asked if at > stopped]
        first.send(signal.SIGTERM)
        assert await first.wait() == 0
    finally:
        go_on(hung)
    await until_ready(second, 200)
    await there.until_asked(list(CALLS), time.monotonic())
    assert "Traceback" not in first.output + second.output
