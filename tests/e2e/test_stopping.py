from __future__ import annotations

import asyncio
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from exporter.simulator import Fault, FaultKind, Plan, Simulator
from tests.e2e.processes import Exporter, configure, listed
from tests.peers import peer
from tests.waiting import deadline, until

HANG, SLOW = Fault(FaultKind.HANG), Fault(FaultKind.LATENCY, seconds=0.1)


def prepare(
    folder: Path, simulator: Simulator, calls: int, fault: Fault, **sections: Any
) -> Exporter:
    """Place calls of an account that is polled as fast as it answers."""
    simulator.faults.set("fault", fault)
    names = [f"call-{number}" for number in range(calls)]
    for name in names:
        simulator.add_call("main", name, Plan())
    account = {"rate_limit": 1000, "max_concurrency": 100}
    return Exporter(configure(folder, simulator, map(listed, names), account=account, **sections))


async def asked(simulator: Simulator, at_least: int) -> None:
    await until(lambda: simulator.traffic.total("main") >= at_least)


async def test_a_stop_under_load_commits_all_that_was_observed(
    tmp_path: Path, simulator: Simulator
) -> None:
    calls = 3_000
    async with prepare(tmp_path, simulator, calls, SLOW) as exporter:
        await asked(simulator, 300)
        exporter.send(signal.SIGTERM)
        assert await exporter.wait() == 0, exporter.output
        answered = simulator.traffic.total("main", "100")
    assert "event=stopped" in exporter.output
    assert "Traceback" not in exporter.output
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as ledger:
        query = "SELECT count(*) FROM calls WHERE result = 'success'"
        (finished,) = ledger.execute(query).fetchone()
        query = "SELECT sum(value) FROM totals WHERE total = 'calls'"
        (counted,) = ledger.execute(query).fetchone()
    # Each answer was the end of a call: all of them, and nothing else, are in the ledger.
    assert 300 <= answered < calls
    assert finished == counted == answered


async def test_a_stop_waits_no_longer_than_it_may(tmp_path: Path, simulator: Simulator) -> None:
    options = {"polling": {"timeout": "5m"}, "shutdown_timeout": "1s"}
    async with prepare(tmp_path, simulator, 10, HANG, **options) as exporter:
        await asked(simulator, 1)
        exporter.send(signal.SIGTERM)
        assert await exporter.wait() == 0, exporter.output


async def test_a_thread_that_hangs_is_not_waited_for(tmp_path: Path, simulator: Simulator) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import socket, time\n"
        "def hang(host, *rest, real=socket.getaddrinfo, **more):\n"
        "    while host == 'hangs.invalid':\n"
        "        print('hangs', flush=True)\n"
        "        time.sleep(1e6)\n"
        "    return real(host, *rest, **more)\n"
        "socket.getaddrinfo = hang\n"
    )
    config = configure(tmp_path, simulator, home_assistant={"url": "mqtt://hangs.invalid"})
    async with Exporter(config, environ={"PYTHONPATH": str(tmp_path)}) as exporter:
        await exporter.says("hangs")
        await exporter.ready()
        exporter.send(signal.SIGTERM)
        assert await exporter.wait() == 0, exporter.output
    assert "event=stopped" in exporter.output


async def test_a_start_that_hangs_can_be_stopped(tmp_path: Path) -> None:
    connected = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        connected.set()
        while await reader.read(65536):
            pass

    async with peer(hang) as port:
        ledger = {"url": f"postgresql://u:p@127.0.0.1:{port}/d"}
        config = configure(tmp_path, "http://127.0.0.1:9", ledger=ledger)
        async with Exporter(config) as exporter:
            async with deadline():
                await connected.wait()
            exporter.send(signal.SIGTERM)
            assert await exporter.wait() == 0, exporter.output
