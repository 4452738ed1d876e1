"""A real exporter, and a socket that listens as systemd does."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

from exporter.simulator import Fault, FaultKind, Plan, Simulator
from tests.e2e.processes import Exporter, configure
from tests.manager import Manager
from tests.waiting import until

WATCHDOG = 1.0


async def test_systemd_hears_of_its_whole_life(tmp_path: Path, simulator: Simulator) -> None:
    simulator.add_call("main", "call", Plan())
    simulator.faults.set("hang", Fault(FaultKind.HANG))
    config = configure(
        tmp_path,
        simulator,
        [{"reference_id": "call", "account": "main"}],
        polling={"timeout": "5m"},
    )
    with Manager(f"{tmp_path}/notify") as manager:
        environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": f"{WATCHDOG * 1e6:.0f}"}
        began = time.monotonic_ns() // 1000
        async with Exporter(config, "--no-config.auto-reload", environ=environ) as exporter:
            lines = await manager.until("READY=1")
            assert lines[1].endswith("calls of 2 accounts watched")
            await exporter.says("event=ready")

            # The watchdog hears from the loop as long as it turns.
            for _ in range(2):
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

            exporter.send(signal.SIGHUP)
            lines = await manager.until("RELOADING=1")
            (when,) = (line for line in lines if line.startswith("MONOTONIC_USEC="))
            assert began < int(when.partition("=")[2]) <= time.monotonic_ns() // 1000
            await manager.until("READY=1")
            await exporter.says("configuration reloaded")
            # The old configuration stays in force: the unit is as ready as it was.
            config.write_text("accounts: 1\n")
            exporter.send(signal.SIGHUP)
            await manager.until("RELOADING=1")
            lines = await manager.until("READY=1")
            assert lines[1].endswith("watched; configuration reload failed")

            # And until the drain is over.
            await until(lambda: simulator.traffic.total("main") > 0)
            exporter.send(signal.SIGTERM)
            await manager.until("STOPPING=1")
            for _ in range(3):
                await manager.until("WATCHDOG=1")
            assert exporter.running.poll() is None
            exporter.send(signal.SIGTERM)
            assert await exporter.wait() == 1
