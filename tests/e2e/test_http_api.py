"""The HTTP API of a real process: its description is true, and what it accepts is kept."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest_asyncio

from exporter.simulator import Account, Simulator
from tests import subprocesses
from tests.e2e.processes import Exporter
from tests.waiting import until

TOKEN = "made-up-token"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@pytest_asyncio.fixture
async def simulator() -> AsyncIterator[Simulator]:
    accounts = [Account("main", "key-main", "s"), Account("b", "key-b", "s")]
    async with Simulator(accounts=accounts) as simulator:
        yield simulator


def configure(folder: Path, simulator: Simulator) -> Path:
    path = folder / "config.yaml"
    (folder / "token").write_text(f"{TOKEN}\n")
    accounts = "".join(
        f"  - {{name: {name}, api_key: key-{name}, secret_key: s, base_url: '{simulator.url}',"
        " rate_limit: 2000}\n"
        for name in ("main", "b")
    )
    path.write_text(
        f"accounts:\n{accounts}"
        "polling: {interval: 200ms, max_interval: 200ms}\n"
        "balance: {interval: 0}\n"
        f"ledger: {{url: 'sqlite:///{folder}/ledger.db'}}\n"
        "watch: {labels: [campaign], api: {tokens: [{name: test, token_file: token}]}}\n"
    )
    return path


async def test_its_description_is_true(tmp_path: Path, simulator: Simulator) -> None:
    rules = tmp_path / "schemathesis.toml"
    # By default, a 413 is no way to refuse a list that is too long.
    rules.write_text("checks.negative_data_rejection.expected-statuses = [400, 404, 405, 413]\n")
    async with Exporter(configure(tmp_path, simulator)) as exporter:
        url = await exporter.ready()
        tester = await subprocesses.start(
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(rules)),
            *("run", f"{url}/api/v1/openapi.json"),
            *("--checks=all", "--header", f"Authorization: Bearer {TOKEN}"),
            *("--max-examples=50", "--seed=1", "--generation-database=none", "--no-color"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await subprocesses.output(tester)
        assert tester.returncode == 0, output[-10_000:]
        assert "Error handling request" not in exporter.output


async def test_what_was_accepted_survives_a_kill(tmp_path: Path, simulator: Simulator) -> None:
    config = configure(tmp_path, simulator)
    random.seed(7)
    accepted: set[str] = set()
    sent = 0

    async def push(url: str, http: aiohttp.ClientSession) -> None:
        nonlocal sent
        while True:
            sent += 1
            names = [f"c{sent}-{part}" for part in range(random.randint(1, 3))]
            calls = [{"reference_id": name, "account": "main"} for name in names]
            try:
                async with http.post(f"{url}/api/v1/calls", json={"calls": calls}) as answer:
                    assert answer.status == 202
                    accepted.update(names)
            except aiohttp.ClientError:
                return

    for _ in range(4):
        async with Exporter(config) as exporter, aiohttp.ClientSession(headers=HEADERS) as http:
            url = await exporter.ready()
            before = len(accepted)
            pushing = [asyncio.create_task(push(url, http)) for _ in range(16)]
            await until(lambda: len(accepted) > before + 30)  # noqa: B023 - awaited here
            await asyncio.sleep(random.random())
            await exporter.kill()
            await asyncio.gather(*pushing)
    assert len(accepted) > 100
    known: set[str] = set()
    async with Exporter(config) as exporter, aiohttp.ClientSession(headers=HEADERS) as http:
        url = await exporter.ready()
        after = "0"
        while after:
            query = {"after": after, "limit": "1000"}
            async with http.get(f"{url}/api/v1/calls", params=query) as answer:
                page = await answer.json()
            known.update(call["reference_id"] for call in page["calls"])
            after = page["next"]
    assert accepted <= known
