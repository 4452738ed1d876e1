"""Real exporters that share a ledger on PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from exporter.simulator import Account, Reply, Simulator
from tests.databases import Server
from tests.e2e.processes import Exporter, Series
from tests.subprocesses import UNMEASURED
from tests.waiting import deadline

HEARTBEAT = 6.0
RATE = 50
ACCOUNTS = tuple(Account(name, f"key-{name}", "s") for name in ("main", "b", "c", "d", "e", "f"))
TOKEN = "made-up-token"


class Scene:
    """Exporters that share a ledger, and what the provider was asked, and when."""

    def __init__(self, simulator: Simulator, folder: Path, url: str) -> None:
        self.simulator = simulator
        self.asked: defaultdict[str, list[float]] = defaultdict(list)  # by account
        self.asked_for: defaultdict[str, list[float]] = defaultdict(list)  # by call
        self._folder = folder
        self.url = url
        self._engine = create_engine(
            url.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool
        )
        simulator.subscribe(self._add)

    def _add(self, _: str, account: str, params: Mapping[str, str], __: Reply) -> None:
        now = time.monotonic()
        self.asked[account].append(now)
        self.asked_for[params.get("ReferenceId", "")].append(now)

    def exporter(
        self, name: str, calls: str, rate: float = RATE, more: str = "", url: str = ""
    ) -> Exporter:
        config = self._folder / f"{name}.yaml"
        accounts = "".join(
            f"  - {{name: {account.name}, api_key: {account.api_key}, secret_key: s, "
            f"base_url: '{self.simulator.url}', rate_limit: {rate}}}\n"
            for account in ACCOUNTS
        )
        config.write_text(
            f"accounts:\n{accounts}polling: {{interval: 1s, max_interval: 2s}}\n"
            "balance: {interval: 0}\n"
            f"ledger: {{url: '{url or self.url}', heartbeat: {HEARTBEAT:.0f}s}}\n"
            f"watch:\n  labels: [campaign]\n  calls:\n{calls or '    []'}\n"
            f"  api: {{tokens: [{{name: app, token: {TOKEN}}}]}}\n{more}"
        )
        return Exporter(config, environ=UNMEASURED)

    def rows(self, query: str) -> list[Any]:
        with self._engine.begin() as connection:
            result = connection.execute(text(query))
            return list(result) if result.returns_rows else []

    async def held(self) -> dict[str, int]:
        """Return how many accounts each exporter polls, by its number; `""` for none."""
        query = """
            SELECT coalesce(split_part(e.name, ':', -1), ''), count(*)
            FROM leases l LEFT JOIN exporters e ON e.id = l.holder GROUP BY 1
        """
        return {row[0]: row[1] for row in await asyncio.to_thread(self.rows, query)}

    async def until_held(self, condition: Any) -> dict[str, int]:
        async with deadline():
            while not condition(held := await self.held()):  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.1)
        return held

    def most_in(self, account: str, seconds: float) -> int:
        """Return the most requests that any time of that length has seen."""
        asked = sorted(self.asked[account])
        most = first = 0
        for last, at in enumerate(asked):
            while asked[first] <= at - seconds:
                first += 1
            most = max(most, last - first + 1)
        return most


@asynccontextmanager
async def scene(server: Server, folder: Path) -> AsyncIterator[Scene]:
    async with Simulator(accounts=ACCOUNTS) as simulator:
        with server.database() as url:
            yield Scene(simulator, folder, url.replace("+psycopg", ""))


def polled(samples: Mapping[Series, float]) -> set[str]:
    """Return the accounts that an exporter polls."""
    return {
        dict(labels)["account"]
        for (name, labels), value in samples.items()
        if name == "esms_account_lease" and value
    }


async def push(exporter: Exporter, ids: list[str], account: str, campaign: str) -> None:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as http:
        body = [
            {"reference_id": name, "account": account, "labels": {"campaign": campaign}}
            for name in ids
        ]
        async with http.post(f"{exporter.url}/api/v1/calls", json={"calls": body}) as answer:
            assert answer.status in (200, 202), await answer.text()
