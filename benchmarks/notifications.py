"""The cost of notifications of finished calls.

First the ledger's part: calls finish in groups, with no target, one, and three, in turns. Then the
dispatcher's: a backlog is sent to a receiver in a process of its own, and the same number of
requests by a loop that does nothing else. CPU seconds per 1,000, medians.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time

import aiohttp
import uvloop
from aiohttp import web

from benchmarks.processes import process
from exporter.calls import Finished, Key, Result, Status
from exporter.config import NotifyConfig
from exporter.ids import ReferenceId
from exporter.ledger.engine import open_database
from exporter.ledger.ledger import Ledger
from exporter.ledger.outbox import Route
from exporter.ledger.store import Store
from exporter.ledger.types import BATCH_SIZE, NewCall, Observation
from exporter.notify.dispatcher import TargetStatus, TargetWorker
from exporter.notify.target import TargetSettings
from exporter.notify.webhook import webhook
from exporter.secrets import Secret

TARGETS = (0, 1, 3)
CONCURRENCY = 8
ENDED = Finished(Result.SUCCESS, Status.ANSWERED, 13.0, Key.ONE)


def finished(store: Store, count: int, first: int) -> float:
    """Have calls end; returns the CPU seconds that it took to write that."""
    used = 0.0
    for start in range(first, first + count, BATCH_SIZE):
        new = [
            NewCall("main", ReferenceId(f"call-{start + n}"), {"campaign": f"c{n % 10}"})
            for n in range(BATCH_SIZE)
        ]
        added = store.watch(None, new, 1.0).added
        group = [Observation("main", one.call, ENDED, 5.0) for one in added]
        began = time.process_time()
        store.commit(group)
        used += time.process_time() - began
    return used


def ledger(rounds: int, count: int) -> None:
    figures: dict[int, list[float]] = {number: [] for number in TARGETS}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(open_database(f"sqlite:///{folder}/ledger.db"))
        first = 0
        for _ in range(rounds + 1):  # the first one warms up
            for number in TARGETS:
                store.outbox.set_routes([Route(f"t{n}", 1e9) for n in range(number)])
                figures[number].append(finished(store, count, first) / count * 1_000)
                first += count
        store.database.close()
    medians = {number: statistics.median(found[1:]) for number, found in figures.items()}
    for number, median in medians.items():
        print(f"finishes, {number} targets: {median:.4f} ({median / medians[0]:.2f})")


def _target(url: str) -> TargetSettings:
    secret = Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    return webhook(
        NotifyConfig(name="t", url=Secret(url), secret=secret, max_concurrency=CONCURRENCY)
    )


async def _sent(url: str, count: int) -> tuple[float, float]:
    """Send a backlog; returns CPU seconds per 1,000, and how many a second."""
    held = Ledger()
    with tempfile.TemporaryDirectory() as folder:
        await held.open(f"sqlite:///{folder}/ledger.db")
        held.store.outbox.set_routes([_target(url).route])
        await held.call(finished, held.store, count, 0)
        cpu, wall = time.process_time(), time.perf_counter()
        status = TargetStatus("t")
        worker = TargetWorker(_target(url), held, asyncio.create_task, status)
        while status.delivered < count:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        await worker.stop(1)
        await held.close()
    return cpu / count * 1_000, count / wall


async def _bare(url: str, count: int) -> float:
    body = b"x" * 550
    left = iter(range(count))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY)) as http:

        async def work() -> None:
            for _ in left:
                async with http.post(url, data=body) as answer:
                    await answer.read()

        cpu = time.process_time()
        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
        return (time.process_time() - cpu) / count * 1_000


async def _sending(url: str, rounds: int, count: int) -> None:
    bare, sent, rates = [], [], []
    for _ in range(rounds):
        bare.append(await _bare(url, count))
        used, rate = await _sent(url, count)
        sent.append(used)
        rates.append(rate)
    ratio = statistics.median(one / other for one, other in zip(sent, bare, strict=True))
    print(
        f"requests alone: {statistics.median(bare):.4f}; sent: {statistics.median(sent):.4f} "
        f"({ratio:.2f}), {statistics.median(rates):.0f} a second"
    )


async def _receive() -> None:
    async def take(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=5_000)
    parser.add_argument("--receive", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.receive:
        uvloop.run(_receive())
        return
    ledger(options.rounds, options.calls)
    with process("benchmarks.notifications", "--receive") as port:
        url = f"http://127.0.0.1:{port}/"
        uvloop.run(_sending(url, options.rounds, options.calls))


if __name__ == "__main__":
    main()
