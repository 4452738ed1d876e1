"""Several exporters on one PostgreSQL, which come and go, while the server does so too."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path

from exporter.simulator import Plan
from tests.databases import PASSWORD, Server
from tests.e2e.counting import ENDS, Counts, Scrapes, counted, expect, scraped
from tests.e2e.processes import Exporter, total
from tests.e2e.sharing import ACCOUNTS, RATE, Scene, number_of, polled, push, scene
from tests.waiting import deadline, until

CALLS = 1_200
SPREAD = 35.0  # seconds over which the calls finish


def placed(there: Scene, chance: random.Random) -> tuple[str, list[tuple[str, str, str]], Counts]:
    """Place the calls.

    Returns:
        Those that the configuration is to name, those that are to be pushed, and how all of them
        have to be counted.
    """
    expected = Counts()
    lines, pushed = [], list[tuple[str, str, str]]()
    for number in range(CALLS):
        account = chance.choice(ACCOUNTS).name
        campaign = chance.choice(("otp", "reminder"))
        options, ending = chance.choice(ENDS)
        when = {"approval" if "rejected" in options else "queued": chance.uniform(0, SPREAD)}
        plan = Plan(unknown_for=chance.uniform(0, 2), **when, **options)  # type: ignore[arg-type]
        name = f"call-{number}"
        there.simulator.add_call(account, name, plan)
        expect(expected, account, campaign, plan, ending)
        if chance.random() < 0.5:
            labels = f"{{campaign: {campaign}}}"
            lines.append(f"    - {{reference_id: {name}, account: {account}, labels: {labels}}}\n")
        else:
            pushed.append((name, account, campaign))
    return "".join(lines), pushed, expected


async def test_what_a_dead_replica_polled_is_polled_again(server: Server, tmp_path: Path) -> None:
    async with scene(server, tmp_path) as there, AsyncExitStack() as ends:
        ids = {f"call-{n}": ACCOUNTS[n % len(ACCOUNTS)].name for n in range(90)}
        for name, account in ids.items():
            there.simulator.add_call(account, name, Plan(queued=9e9))
        calls = "".join(f"    - {{reference_id: {c}, account: {a}}}\n" for c, a in ids.items())
        exporters = [there.exporter(f"replica{n}", calls) for n in range(3)]
        for exporter in exporters:
            ends.push_async_callback(exporter.kill)
            await exporter.start()
        for exporter in exporters:
            await exporter.ready()
        # They share evenly, although one of them has taken them all.
        await there.until_held(lambda held: sorted(held.values()) == [2, 2, 2])
        accounts = polled(await exporters[0].until(lambda found: len(polled(found)) == 2))
        await exporters[0].kill()
        killed = time.monotonic()
        orphans = [name for name, account in ids.items() if account in accounts]
        assert orphans
        await until(lambda: all(there.asked_for[name][-1:] > [killed + 0.5] for name in orphans))
        await exporters[1].until(lambda found: total(found, "esms_replicas") == 2)
        assert PASSWORD not in "".join(exporter.output for exporter in exporters)


async def test_every_call_counts_once_whatever_replicas_and_the_server_do(
    server: Server, tmp_path: Path
) -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with scene(server, tmp_path) as there, AsyncExitStack() as ends:
        calls, pushed, expected = placed(there, chance)
        scrapes = []

        async def started(name: str) -> Exporter:
            exporter = there.exporter(name, calls)
            ends.push_async_callback(exporter.kill)
            scrapes.append(Scrapes())
            await ends.enter_async_context(scraped(exporter, scrapes[-1], 0.2))
            await exporter.start()
            await exporter.ready()
            return exporter

        killed, stopped, drained = [
            await started(f"replica-{what}") for what in ("killed", "stopped", "drained")
        ]
        for name, account, campaign in pushed:
            # To two of them, now and then: they are one to whoever calls.
            for exporter in chance.sample((killed, stopped, drained), chance.choice((1, 1, 2))):
                await push(exporter, [name], account, campaign)
        await there.until_held(lambda held: sorted(held.values()) == [2, 2, 2])

        await killed.kill()
        stopped.send(signal.SIGSTOP)
        await there.until_held(lambda held: held == {number_of(drained): 6})
        fresh = await started("replica-fresh")
        stopped.send(signal.SIGCONT)
        await stopped.says("leases not renewed in time")
        await asyncio.to_thread(server.stop)
        await asyncio.sleep(2)
        await asyncio.to_thread(server.start)
        await there.until_held(lambda held: number_of(fresh) in held)
        drained.send(signal.SIGTERM)
        assert await drained.wait() == 0

        left = (stopped, fresh)
        async with deadline():
            while sum([total(await one.scrape(), "esms_calls_total") for one in left]) < CALLS:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.1)
        await asyncio.sleep(1.5)  # what would be counted twice would be counted now
        last = [await exporter.scrape() for exporter in left]
        assert sorted(len(polled(samples)) for samples in last) == [3, 3]
        assert counted(last[0]) + counted(last[1]) == expected
        assert sum(total(samples, "esms_calls_watched") for samples in last) == 0
        delays = "esms_call_result_delay_seconds_count"
        assert sum(total(samples, delays) for samples in last) == CALLS
        for seen in scrapes:
            assert seen.count > 1
            assert seen.backwards == []
        ((finished, known),) = there.rows("SELECT count(result), count(*) FROM calls")
        assert (finished, known) == (CALLS, CALLS)
        for one in ACCOUNTS:
            # The provider shares the cores with everybody here, and may see what was late at once.
            assert there.most_in(one.name, 10) <= 1.2 * 10 * RATE
