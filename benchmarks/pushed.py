"""Calls that are pushed through the HTTP API while others are polled, and a kill in the middle.

Requests leave at a steady rate, whether or not those before were answered. What was accepted has to
be in the ledger in the end, and is looked for there.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp

from benchmarks.processes import Exporter, provider

TOKEN = "made-up"
TICK = 0.01


class Pusher:
    """Sends calls, and remembers which were accepted and how long that took."""

    def __init__(self, http: aiohttp.ClientSession, per_second: int, batch: int) -> None:
        self._http = http
        self._per_tick = per_second * TICK / batch
        self._batch = batch
        self._sent = 0
        self.accepted: list[str] = []
        self.refused = 0
        self.times: list[float] = []

    async def push(self, url: str, seconds: float) -> None:
        """Send for so long; returns once all are answered."""
        began = time.perf_counter()
        owed, tasks = 0.0, set[asyncio.Task[None]]()
        while (now := time.perf_counter() - began) < seconds:
            while owed < now / TICK * self._per_tick:
                owed += 1
                task = asyncio.create_task(self._send(url))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.sleep(TICK)
        await asyncio.gather(*tasks)

    async def _send(self, url: str) -> None:
        names = [f"{self._sent + number:036d}" for number in range(self._batch)]
        self._sent += self._batch
        start = time.perf_counter()
        body = {"calls": [{"reference_id": name, "account": "main"} for name in names]}
        try:
            async with self._http.post(f"{url}/api/v1/calls", json=body) as answer:
                await answer.read()
                if answer.status == 202:
                    self.accepted += names
                    self.times.append((time.perf_counter() - start) * 1000)
                    return
        except aiohttp.ClientError:
            pass
        self.refused += self._batch


def _configuration(folder: Path, base_url: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(
        f"accounts: [{{name: main, api_key: k, secret_key: s, base_url: '{base_url}',"
        " rate_limit: 100000}]\n"
        "balance: {interval: 0}\n"
        f"ledger: {{url: 'sqlite:///{folder}/ledger.db'}}\n"
        f"watch: {{api: {{tokens: [{{name: bench, token: {TOKEN}}}]}}}}\n"
    )
    return path


async def _run(folder: Path, base_url: str, options: argparse.Namespace) -> None:
    config = _configuration(folder, base_url)
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    connector = aiohttp.TCPConnector(limit=64)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    polls = 0.0
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http:
        pusher = Pusher(http, options.rate, options.batch)
        for life in range(2):
            with Exporter(config) as exporter:
                exporter.wait_until_ready()
                pushing = asyncio.create_task(pusher.push(exporter.url, options.seconds / 2))
                await asyncio.sleep(options.seconds / 2 - 0.5)
                found = await asyncio.to_thread(exporter.totals)
                polls += found["esms_api_requests_total"]
                if life:
                    await pushing
                    exporter.end()
            # The first is killed, as the block ends, in the middle of what it is sent.
            await pushing
    cpu_end = resource.getrusage(resource.RUSAGE_CHILDREN)
    with sqlite3.connect(folder / "ledger.db") as ledger:
        held = {name for (name,) in ledger.execute("SELECT reference_id FROM calls")}
    lost = len(set(pusher.accepted) - held)
    seconds = cpu_end.ru_utime + cpu_end.ru_stime - cpu.ru_utime - cpu.ru_stime
    percentiles = statistics.quantiles(pusher.times, n=100)
    print(
        f"| {options.batch} | {len(pusher.accepted):,} | {pusher.refused} | {lost} | {polls:,.0f} "
        f"| {percentiles[49]:.1f} | {percentiles[98]:.1f} | {seconds / options.seconds:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=1_000, help="calls per second")
    parser.add_argument("--batch", type=int, default=1, help="calls in a request")
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    print(
        "| calls a request | accepted | unanswered | accepted and lost | polls | p50, ms | p99, ms "
        "| cores used |\n" + "|---" * 8 + "|"
    )
    # The exporter has one core, and shares it with what pushes; the provider has the other.
    cores = sorted(os.sched_getaffinity(0))
    with provider(None) as url, tempfile.TemporaryDirectory() as name:
        os.sched_setaffinity(0, cores[:1])
        asyncio.run(_run(Path(name), url, options))


if __name__ == "__main__":
    main()
