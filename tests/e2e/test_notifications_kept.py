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

from exporter.simulator import Account, Plan, Simulator
from tests.databases import postgresql
from tests.e2e.counting import ENDS
from tests.e2e.processes import Exporter, total
from tests.faults.scene import environment
from tests.notify.receiver import SECRET, Receiver
from tests.subprocesses import UNMEASURED
from tests.waiting import deadline, until

CALLS = 400
BOUNDARIES = range(9, 21)
"""Commits of one life that are died at. Those of the start come before; tests/faults has them."""

TARGETS = 2
MAX_CONCURRENCY = 8  # the default
SPREAD = 12.0  # seconds over which the calls finish


def place(simulator: Simulator, chance: random.Random, spread: float = SPREAD) -> str:
    """Place the calls; returns them as a configuration has them."""
    lines = []
    for number in range(CALLS):
        options, _ = chance.choice(ENDS)
        when = {"approval" if "rejected" in options else "queued": chance.uniform(0, spread)}
        simulator.add_call("main", f"call-{number}", Plan(**when, **options))  # type: ignore[arg-type]
        lines.append(
            f"    - {{reference_id: call-{number}, labels: {{campaign: c{number % 3}}}}}\n"
        )
    return "".join(lines)


def configuration(simulator: Simulator, ledger: str, receiver: Receiver, calls: str) -> str:
    signed = f"secret: {SECRET}, timeout: 3s"
    return (
        f"accounts: [{{name: main, api_key: key, secret_key: s, base_url: '{simulator.url}', "
        "rate_limit: 300}]\n"
        "balance: {interval: 0}\n"
        "polling: {interval: 1s, max_interval: 2s}\n"
        f"ledger: {{{ledger}}}\n"
        f"notify:\n  - {{name: all, {signed}, url: '{receiver.url}'}}\n"
        f"  - {{name: some, {signed}, url: '{receiver.url.replace('hook', 'some')}', "
        "labels: {campaign: [c0, c1]}}\n"
        f"watch:\n  labels: [campaign]\n  calls:\n{calls}"
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


async def test_every_call_is_told_though_the_exporter_dies_at_any_commit(tmp_path: Path) -> None:
    """Those that write finishes, claim what is to be told of them, and settle it, come in turns."""
    config, wanted = tmp_path / "config.yaml", tmp_path / "commits"
    async with Simulator(accounts=[Account("main", "key", "s")]) as simulator, Receiver() as told:
        told.answer = unsteady
        ledger = f"url: 'sqlite:///{tmp_path}/ledger.db'"
        calls = place(simulator, random.Random(7), spread=60.0)
        config.write_text(configuration(simulator, ledger, told, calls))
        exporter = Exporter(config, environ={**UNMEASURED, **environment(commits=wanted)})
        try:
            for number in BOUNDARIES:
                wanted.write_text(f"{number} {'before' if number % 2 else 'after'}")
                await exporter.start()
                assert await exporter.wait() == -signal.SIGKILL, exporter.output
            wanted.write_text("0 never")
            await exporter.start()
            await exporter.listening()
            await exporter.until(
                lambda found: (
                    total(found, "esms_calls_total") == CALLS
                    and not rows(tmp_path / "ledger.db")
                    and total(found, "esms_notifications_pending") == 0
                )
            )
            found = await exporter.scrape()
            assert total(found, "esms_notifications_total", outcome="gave_up") == 0
            assert not any(hidden in exporter.output for hidden in ("made-up-url-token", SECRET))
        finally:
            await exporter.kill()
    check(told)


def rows(ledger: Path) -> int:
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
        found: int = connection.execute("SELECT count(*) FROM notifications").fetchone()[0]
    return found


async def test_replicas_share_the_work_and_lose_nothing_when_one_is_killed(
    tmp_path: Path,
) -> None:
    chance = random.Random(7)
    async with AsyncExitStack() as stack:
        server = stack.enter_context(postgresql())
        url = stack.enter_context(server.database())
        simulator = await stack.enter_async_context(
            Simulator(accounts=[Account("main", "key", "s")])
        )
        told = await stack.enter_async_context(Receiver())
        ledger = f"url: '{url.replace('+psycopg', '')}', heartbeat: 6s"
        exporters = []
        for number in range(3):
            config = tmp_path / f"{number}.yaml"
            config.write_text(configuration(simulator, ledger, told, ""))
            exporters.append(Exporter(config, environ=UNMEASURED))
            stack.push_async_callback(exporters[-1].stop)
            await exporters[-1].start()
        for exporter in exporters:
            await exporter.ready()
        # The calls finish while all are there to share them.
        calls = place(simulator, chance)
        for number, exporter in enumerate(exporters):
            (tmp_path / f"{number}.yaml").write_text(configuration(simulator, ledger, told, calls))
            exporter.send(signal.SIGHUP)
        engine = create_engine(url, poolclass=NullPool)

        def left() -> tuple[int, int]:
            with engine.connect() as connection:
                unfinished = "SELECT count(*) FROM calls WHERE result IS NULL"
                pending = "SELECT count(*) FROM notifications"
                first, second = (connection.scalar(text(q)) for q in (unfinished, pending))
                return int(first or 0), int(second or 0)

        await until(lambda: len(told.told) > CALLS // 4)
        killed = exporters.pop()
        await killed.kill()
        # What it had claimed comes again when its claim ends: a time-out and half a minute.
        async with deadline():
            while await asyncio.to_thread(left) != (0, 0):  # noqa: ASYNC110 - of other processes
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
