"""A hundred kills at random times: every call is counted once, and no counter goes backwards."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path

from exporter.simulator import Simulator
from tests.e2e.counting import Counts, Scrapes, counted, expect, plan, scraped
from tests.e2e.processes import Exporter, configure, total

KILLS = 100
CALLS = 2_000
SPREAD = 30.0  # seconds over which the calls finish


def fill(simulator: Simulator, chance: random.Random) -> tuple[str, Counts]:
    """Place the calls; returns them as a file of calls, and how they have to be counted."""
    lines, expected = ["reference_id,account,campaign\n"], Counts()
    for number in range(CALLS):
        account, campaign = chance.choice(("main", "other")), chance.choice(("otp", "reminder"))
        planned, ending = plan(chance, SPREAD, unknown_for=chance.uniform(0, 2))
        simulator.add_call(account, f"call-{number}", planned)
        lines.append(f"call-{number},{account},{campaign}\n")
        expect(expected, account, campaign, planned, ending)
    return "".join(lines), expected


async def test_every_call_counts_once_however_often_the_exporter_is_killed(
    tmp_path: Path, simulator: Simulator
) -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    chance = random.Random(seed)
    scrapes = Scrapes()
    calls, expected = fill(simulator, chance)
    (tmp_path / "calls.csv").write_text(calls)
    config = configure(
        *(tmp_path, simulator),
        account={"rate_limit": 300},
        watch={"files": ["calls.csv"]},
        polling={"interval": "1s", "max_interval": "2s"},
    )
    async with Exporter(config) as exporter, scraped(exporter, scrapes):
        for kill in range(KILLS):
            # Every fourth time anywhere in the start, before or after the ledger is open.
            if kill % 4:
                await exporter.listening()
            await asyncio.sleep(chance.uniform(0.0, 0.5))
            assert exporter.running.poll() is None, exporter.output
            await exporter.kill()
            await exporter.start()
        await exporter.listening()
        await exporter.until(lambda samples: total(samples, "esms_calls_total") >= CALLS)
        # A little longer: what would be counted twice would be counted now.
        await asyncio.sleep(0.5)
        last = await exporter.scrape()
    assert scrapes.backwards == []
    assert scrapes.count > KILLS / 2
    assert counted(last) == expected
    assert total(last, "esms_calls_watched") == 0
    assert total(last, "esms_call_result_delay_seconds_count") == CALLS
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        query = "SELECT count(*), count(result) FROM calls"
        assert database.execute(query).fetchone() == (CALLS, CALLS)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
