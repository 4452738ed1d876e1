"""A real exporter, and a socket that listens as systemd does."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from exporter.simulator import Account, Fault, FaultKind, Plan, Simulator
from tests.e2e.processes import Exporter
from tests.manager import Manager
from tests.waiting import deadline

WATCHDOG = 1.0


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager(f"{tmp_path}/notify") as manager:
        yield manager


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(accounts=[Account("main", "key", "s")]) as simulator:
        simulator.add_call("main", "call", Plan())
        yield simulator


@pytest.fixture
def exporter(tmp_path: Path, simulator: Simulator, manager: Manager) -> Exporter:
    config = tmp_path / "config.yaml"
    config.write_text(
        "accounts:\n  - {name: main, api_key: key, secret_key: s, base_url: '"
        f"{simulator.url}'}}\nledger: {{url: 'sqlite:///{tmp_path}/ledger.db'}}\n"
        "balance: {interval: 0}\n"
        "watch: {calls: [call]}\n"
    )
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": str(round(WATCHDOG * 1e6))}
    return Exporter(config, "--no-config.auto-reload", environ=environ)


async def test_it_tells_that_it_is_ready_reloads_and_stops(
    tmp_path: Path, exporter: Exporter, manager: Manager
) -> None:
    async with exporter:
        began = time.monotonic_ns() // 1000
        lines = await manager.until("READY=1")
        assert lines[1].endswith("calls of 1 accounts watched")
        assert "event=ready" in exporter.output

        exporter.send(signal.SIGHUP)
        lines = await manager.until("RELOADING=1")
        (when,) = (line for line in lines if line.startswith("MONOTONIC_USEC="))
        assert began < int(when.partition("=")[2]) <= time.monotonic_ns() // 1000
        await manager.until("READY=1")
        assert "configuration reloaded" in exporter.output

        # The old configuration stays in force: the unit is as ready as it was.
        (tmp_path / "config.yaml").write_text("accounts: 1\n")
        exporter.send(signal.SIGHUP)
        await manager.until("RELOADING=1")
        lines = await manager.until("READY=1")
        assert lines[1].endswith("watched; configuration reload failed")

        exporter.send(signal.SIGTERM)
        await manager.until("STOPPING=1")
        assert await exporter.wait() == 0


async def test_the_watchdog_hears_from_the_loop_as_long_as_it_turns(
    exporter: Exporter, manager: Manager
) -> None:
    async with exporter:
        await manager.until("READY=1")
        for _ in range(4):
            await manager.until("WATCHDOG=1")
        exporter.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(0.1)
            manager.drop_all()
            await asyncio.sleep(2 * WATCHDOG)
            assert manager.drop_all() == 0
        finally:
            exporter.send(signal.SIGCONT)
        await manager.until("WATCHDOG=1")


async def test_the_watchdog_hears_until_the_drain_is_over(
    exporter: Exporter, simulator: Simulator, manager: Manager
) -> None:
    simulator.faults.set("hang", Fault(FaultKind.HANG))
    async with exporter:
        await manager.until("READY=1")
        async with deadline():
            while not simulator.traffic.total("main"):  # noqa: ASYNC110 - nobody tells the test
                await asyncio.sleep(0.01)
        exporter.send(signal.SIGTERM)
        await manager.until("STOPPING=1")
        for _ in range(3):
            await manager.until("WATCHDOG=1")
        assert exporter.running.poll() is None
        exporter.send(signal.SIGTERM)
