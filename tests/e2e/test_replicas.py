"""Several exporters on one PostgreSQL, of which one is killed."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from pathlib import Path

from exporter.simulator import Plan
from tests.databases import PASSWORD, Server
from tests.e2e.processes import total
from tests.e2e.sharing import ACCOUNTS, polled, scene
from tests.waiting import until

RATE = 10


async def test_what_a_dead_replica_polled_is_polled_again(server: Server, tmp_path: Path) -> None:
    async with scene(server, tmp_path) as there, AsyncExitStack() as ends:
        ids = {f"call-{n}": ACCOUNTS[n % len(ACCOUNTS)].name for n in range(90)}
        for name, account in ids.items():
            there.simulator.add_call(account, name, Plan(queued=9e9))
        calls = "".join(f"    - {{reference_id: {c}, account: {a}}}\n" for c, a in ids.items())
        exporters = [there.exporter(f"replica{n}", calls, rate=RATE) for n in range(3)]
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
        for one in ACCOUNTS:  # each has calls for 15 requests a second
            assert there.most_in(one.name, 10) <= 1.2 * 10 * RATE
        assert PASSWORD not in "".join(exporter.output for exporter in exporters)
