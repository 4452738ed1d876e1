"""Exporters that are killed anywhere, and somebody who is told of every call that they count."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
from contextlib import AsyncExitStack, closing
from pathlib import Path

from aiohttp import web
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from exporter.simulator import Simulator
from tests.databases import Server
from tests.e2e.counting import plan
from tests.e2e.processes import Exporter, configure, total
from tests.faults.scene import environment
from tests.notify.receiver import SECRET, Receiver
from tests.subprocesses import UNMEASURED
from tests.waiting import deadline, until

CALLS = 400
BOUNDARIES = range(9, 21)
"""Commits of one life that are died at. Those of the start come before; tests/faults has them."""

TARGETS = 2
MAX_CONCURRENCY = 8  # the default
OPEN = "SELECT count(*) FROM calls WHERE result IS NULL"
PENDING = "SELECT count(*) FROM notifications"


def place(folder: Path, simulator: Simulator, spread: float) -> None:
    """Place calls that finish over so many seconds, and name them in the file of calls."""
    chance, lines = random.Random(7), ["reference_id,account,campaign\n"]
    for number in range(CALLS):
        simulator.add_call("main", f"call-{number}", plan(chance, spread)[0])
        lines.append(f"call-{number},main,c{number % 3}\n")
    (folder / "new").write_text("".join(lines))
    (folder / "new").rename(folder / "calls.csv")


def write(folder: Path, simulator: Simulator, receiver: Receiver, file: str, **ledger: str) -> Path:
    some = receiver.url.replace("hook", "some")
    signed = {"secret": SECRET, "timeout": "3s"}
    return configure(
        *(folder, simulator),
        account={"rate_limit": 300},
        file=file,
        polling={"interval": "1s", "max_interval": "2s"},
        watch={"files": ["calls*.csv"]},
        ledger=ledger,
        notify=[
            {"name": "all", "url": receiver.url, **signed},
            {"name": "some", "url": some, "labels": {"campaign": ["c0", "c1"]}, **signed},
        ],
    )


async def unsteady(request: web.Request) -> web.StreamResponse:
    """Take what comes, answer some of it badly, and some of it late."""
    chance = random.random()
    await asyncio.sleep(chance / 20)
    return web.Response(status=500 if chance < 0.02 else 204)


def check(receiver: Receiver) -> None:
    """Every call came, from each target that is told of it, and its repeats show that they are."""
    assert receiver.bad == []
    ids = {told.call: told.event["id"] for told in receiver.told}
    assert len(ids) == CALLS
    assert len(set(ids.values())) == CALLS
    seen: dict[str, object] = {}
    for told in receiver.told:
        assert told.event["id"] == ids[told.call]
        assert seen.setdefault(told.call, told.event["data"]) == told.event["data"]
    some = {told.call for told in receiver.told if told.path == "/some"}
    assert some == {call for call in ids if int(call.split("-")[1]) % 3 != 2}
    assert {told.call for told in receiver.told if told.path == "/hook"} == ids.keys()


async def test_every_call_is_told_though_the_exporter_dies_at_any_commit(
    tmp_path: Path, simulator: Simulator
) -> None:
    """Those that write finishes, claim what is to be told of them, and settle it, come in turns."""
    wanted, ledger = tmp_path / "commits", tmp_path / "ledger.db"

    def pending() -> int:
        with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
            return int(connection.execute(PENDING).fetchone()[0])

    async with Receiver() as told:
        told.answer = unsteady
        place(tmp_path, simulator, 60.0)
        config = write(tmp_path, simulator, told, "config.yaml", url=f"sqlite:///{ledger}")
        exporter = Exporter(config, environ={**UNMEASURED, **environment(commits=wanted)})
        try:
            for number in BOUNDARIES:
                wanted.write_text(f"{number} {'before' if number % 2 else 'after'}")
                await exporter.start()
                assert await exporter.wait() == -signal.SIGKILL, exporter.output
            wanted.write_text("0 never")
            await exporter.start()
            await exporter.listening()
            found = await exporter.until(
                lambda found: (
                    total(found, "esms_calls_total") == CALLS
                    and not pending()
                    and total(found, "esms_notifications_pending") == 0
                )
            )
            assert total(found, "esms_notifications_total", outcome="gave_up") == 0
            assert not any(hidden in exporter.output for hidden in ("made-up-url-token", SECRET))
        finally:
            await exporter.kill()
    check(told)


async def test_replicas_share_the_work_and_lose_nothing_when_one_is_killed(
    tmp_path: Path, simulator: Simulator, server: Server
) -> None:
    async with AsyncExitStack() as stack:
        url = stack.enter_context(server.database())
        told = await stack.enter_async_context(Receiver())
        ledger = {"url": url.replace("+psycopg", ""), "heartbeat": "6s"}
        configs = [write(tmp_path, simulator, told, f"{n}.yaml", **ledger) for n in range(3)]
        exporters = [Exporter(config, environ=UNMEASURED) for config in configs]
        for exporter in exporters:
            stack.push_async_callback(exporter.stop)
            await exporter.start()
        for exporter in exporters:
            await exporter.ready()
        # The calls finish while all are there to share them.
        place(tmp_path, simulator, 12.0)
        engine = create_engine(url, poolclass=NullPool)

        def left() -> list[int]:
            with engine.connect() as connection:
                return [int(connection.scalar(text(query)) or 0) for query in (OPEN, PENDING)]

        await until(lambda: len(told.told) > CALLS // 4)
        await exporters.pop().kill()
        # What it had claimed comes again when its claim ends: a time-out and half a minute.
        async with deadline():
            while await asyncio.to_thread(left) != [0, 0]:  # noqa: ASYNC110 - of other processes
                await asyncio.sleep(0.2)
        found = [await exporter.scrape() for exporter in exporters]
    check(told)
    # Nothing came twice but what was answered too late, on a busy machine, and what the killed one
    # had sent and could not settle any more.
    requests = "esms_notification_requests_total"
    late = sum(total(one, requests) - total(one, requests, outcome="ok") for one in found)
    repeated = len(told.told) - len({(one.path, one.call) for one in told.told})
    assert repeated <= late + TARGETS * MAX_CONCURRENCY
    # Those that are left have gone on with what the killed one left, each or one of them.
    assert any(total(one, "esms_notifications_total", outcome="delivered") > 0 for one in found)
