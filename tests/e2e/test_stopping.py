from __future__ import annotations

import asyncio
import signal
import sqlite3
from pathlib import Path

import pytest

from exporter.simulator import Account, Fault, FaultKind, Plan, Simulator
from tests.e2e.processes import Exporter
from tests.waiting import deadline

CALLS = 3_000


def configure(folder: Path, simulator: Simulator, calls: int, more: str = "") -> Path:
    config = folder / "config.yaml"
    ids = "".join(f"    - call-{number}\n" for number in range(calls))
    config.write_text(
        f"accounts:\n  - {{name: main, api_key: key, secret_key: s, "
        f"base_url: '{simulator.url}', rate_limit: 1000, max_concurrency: 100}}\n"
        "balance: {interval: 0}\n"
        f"ledger: {{url: 'sqlite:///{folder}/ledger.db'}}\n{more}watch:\n  calls:\n{ids}"
    )
    for number in range(calls):
        simulator.add_call("main", f"call-{number}", Plan())
    return config


async def asked(simulator: Simulator, at_least: int) -> None:
    async with deadline():
        while simulator.traffic.total("main") < at_least:  # noqa: ASYNC110 - nobody tells the test
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_under_load_commits_all_that_was_observed(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with Simulator(accounts=[Account("main", "key", "s")]) as simulator:
        simulator.faults.set("slow", Fault(FaultKind.LATENCY, seconds=0.1))
        async with Exporter(configure(tmp_path, simulator, CALLS)) as exporter:
            await asked(simulator, 300)
            exporter.send(number)
            assert await exporter.wait() == 0, exporter.output
            answered = simulator.traffic.total("main", "100")
        assert "event=stopped" in exporter.output
        assert "Traceback" not in exporter.output
        with sqlite3.connect(tmp_path / "ledger.db") as ledger:
            query = "SELECT count(*) FROM calls WHERE result = 'success'"
            (finished,) = ledger.execute(query).fetchone()
            query = "SELECT sum(value) FROM totals WHERE total = 'calls'"
            (counted,) = ledger.execute(query).fetchone()
        ledger.close()
        # Each answer was the end of a call: all of them, and nothing else, are in the ledger.
        assert 300 <= answered < CALLS
        assert finished == counted == answered


async def test_a_stop_does_not_wait_longer_than_it_may(tmp_path: Path) -> None:
    async with Simulator(accounts=[Account("main", "key", "s")]) as simulator:
        simulator.faults.set("hang", Fault(FaultKind.HANG))
        config = configure(
            tmp_path, simulator, 10, "polling: {timeout: 5m}\nshutdown_timeout: 1s\n"
        )
        async with Exporter(config) as exporter:
            await asked(simulator, 1)
            exporter.send(signal.SIGTERM)
            assert await exporter.wait() == 0, exporter.output


async def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    async with Simulator(accounts=[Account("main", "key", "s")]) as simulator:
        simulator.faults.set("hang", Fault(FaultKind.HANG))
        config = configure(
            tmp_path, simulator, 10, "polling: {timeout: 5m}\nshutdown_timeout: 5m\n"
        )
        async with Exporter(config) as exporter:
            await asked(simulator, 1)
            exporter.send(signal.SIGTERM)
            await exporter.says("event=stopping")
            await asyncio.sleep(0.3)
            assert exporter.running.poll() is None
            exporter.send(signal.SIGTERM)
            assert await exporter.wait() == 1


async def test_a_thread_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import socket, time\n"
        "def hang(host, *rest, real=socket.getaddrinfo, **more):\n"
        "    while host == 'hangs.invalid':\n"
        "        print('hangs', flush=True)\n"
        "        time.sleep(1e6)\n"
        "    return real(host, *rest, **more)\n"
        "socket.getaddrinfo = hang\n"
    )
    async with Simulator(accounts=[Account("main", "key", "s")]) as simulator:
        config = configure(
            tmp_path, simulator, 1, "home_assistant: {url: 'mqtt://hangs.invalid'}\n"
        )
        async with Exporter(config, environ={"PYTHONPATH": str(tmp_path)}) as exporter:
            await exporter.says("hangs")
            await exporter.ready()
            exporter.send(signal.SIGTERM)
            assert await exporter.wait() == 0, exporter.output
        assert "event=stopped" in exporter.output


async def test_a_start_that_hangs_can_be_stopped(tmp_path: Path) -> None:
    connected = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        while await reader.read(65536):
            pass
        writer.close()

    config = tmp_path / "config.yaml"
    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        config.write_text(
            "accounts: [{name: main, api_key: key, secret_key: s}]\nbalance: {interval: 0}\n"
            f"ledger: {{url: 'postgresql://u:p@127.0.0.1:{port}/d'}}\n"
        )
        async with Exporter(config) as exporter:
            async with deadline():
                await connected.wait()
            exporter.send(signal.SIGTERM)
            assert await exporter.wait() == 0, exporter.output
