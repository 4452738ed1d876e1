"""Requests per finished call, and the time from its end to its count, with callbacks and without.

Calls live as real ones do: they ring, are talked to, and wait for the carrier's report. The
ways run side by side, on the same calls.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import aiohttp

from benchmarks.processes import Exporter, wait_until
from exporter.simulator import Account, Plan, Simulator

TOKEN = "made-up"


class Way(NamedTuple):
    """How calls are followed; `trust` is None where nobody calls back."""

    name: str
    interval: str
    trust: str | None


WAYS = (
    Way("polling alone", "15s", None),
    Way("callbacks, verified", "15s", "verify"),
    Way("callbacks, verified", "1m", "verify"),
    Way("callbacks, trusted", "1m", "accept"),
)


def _plans(calls: int, scale: float) -> list[Plan]:
    chance = random.Random(5)
    return [
        Plan(
            queued=scale * chance.uniform(2, 25),
            sent=scale * min(120.0, chance.lognormvariate(3.0, 0.6)),
            duration=10,
            price=400,
        )
        for _ in range(calls)
    ]


def _configuration(folder: Path, base_url: str, way: Way) -> Path:
    path = folder / "config.yaml"
    path.write_text(
        f"accounts:\n  - {{name: main, api_key: k, secret_key: s, base_url: '{base_url}',"
        f" callback_token: {TOKEN}, rate_limit: 200}}\n"
        "balance: {interval: 0}\n"
        f"ledger: {{url: 'sqlite:///{folder}/ledger.db'}}\n"
        f"watch:\n  api: {{tokens: [{{name: bench, token: {TOKEN}}}]}}\n"
        f"  callback: {{trust: {way.trust or 'verify'}}}\n"
        f"polling: {{pace: growing, interval: {way.interval}}}\n"
    )
    return path


async def _one(
    http: aiohttp.ClientSession,
    simulator: Simulator,
    url: str,
    name: str,
    plan: Plan,
    *,
    called_back: bool,
) -> float:
    """Place a call, hand it over, and call back when it has ended; returns when that was."""
    simulator.add_call("main", name, plan)
    ends = time.time() + plan.ends_after
    body = {"calls": [{"reference_id": name, "account": "main"}]}
    async with http.post(f"{url}/api/v1/calls", json=body) as answer:
        assert answer.status == 202
    await asyncio.sleep(ends - time.time())
    if called_back:
        fields = {"ReferenceId": name, "CallDuration": "10", "CallStatus": "ANSWERED", "Ivr": ""}
        fields |= {"Price": "400.0000", "SentResult": "1", "CID": "", "SendStatus": "5"}
        async with http.get(f"{url}/callback/main/{TOKEN}", params=fields) as answer:
            assert answer.status == 200
    return ends


async def _way(way: Way, plans: Sequence[Plan], seconds: float, folder: Path) -> str:
    with ExitStack() as stack:
        async with (
            Simulator(accounts=[Account("main", "k", "s")]) as simulator,
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as http,
        ):
            exporter = stack.enter_context(Exporter(_configuration(folder, simulator.url, way)))
            await asyncio.to_thread(exporter.wait_until_ready)
            tasks = []
            for number, plan in enumerate(plans):
                one = _one(
                    *(http, simulator, exporter.url, f"c{number}", plan),
                    called_back=way.trust is not None,
                )
                tasks.append(asyncio.create_task(one))
                await asyncio.sleep(seconds / len(plans))
            ends = await asyncio.gather(*tasks)
            found = await asyncio.to_thread(wait_until, exporter, "esms_calls_total", len(plans))
            await asyncio.to_thread(exporter.end)
    with sqlite3.connect(folder / "ledger.db") as ledger:
        query = "SELECT reference_id, finished_at FROM calls"
        finished = dict(ledger.execute(query).fetchall())
    delays = [finished[f"c{number}"] - end for number, end in enumerate(ends)]
    percentiles = statistics.quantiles(delays, n=20)
    requests = found["esms_api_requests_total"] / len(plans)
    p50, p95 = percentiles[9], percentiles[18]
    return f"| {way.name} | {way.interval} | {requests:.2f} | {p50:.2f} | {p95:.2f} |"


async def _run(calls: int, seconds: float, scale: float) -> None:
    plans = _plans(calls, scale)
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(number) for number in range(len(WAYS))]
        for folder in folders:
            folder.mkdir()
        ways = zip(WAYS, folders, strict=True)
        lines = await asyncio.gather(*(_way(way, plans, seconds, folder) for way, folder in ways))
    print(
        "| | interval | requests per finished call | delay p50, s | p95, s |\n" + "|---" * 5 + "|"
    )
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=60, help="over which they are placed")
    parser.add_argument("--scale", type=float, default=1, help="of the time that calls live")
    options = parser.parse_args()
    asyncio.run(_run(options.calls, options.seconds, options.scale))


if __name__ == "__main__":
    main()
