"""A hundred kills at random times: every call is counted once, and no counter goes backwards."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path

from exporter.simulator import Account, Plan, Simulator
from tests.e2e.counting import ENDS, Counts, Scrapes, counted, expect, scraped
from tests.e2e.processes import Exporter, total

KILLS = 100
CALLS = 2_000
SPREAD = 30.0  # seconds over which the calls finish

ACCOUNTS = (Account("main", "key-main", "s"), Account("other", "key-other", "s"))


def fill(simulator: Simulator, chance: random.Random) -> tuple[str, Counts]:
    """Place the calls; returns their configuration, and how they have to be counted."""
    lines, expected = [], Counts()
    for number in range(CALLS):
        account, campaign = chance.choice(ACCOUNTS).name, chance.choice(("otp", "reminder"))
        options, ending = chance.choice(ENDS)
        when = {"approval" if "rejected" in options else "queued": chance.uniform(0, SPREAD)}
        plan = Plan(unknown_for=chance.uniform(0, 2), **when, **options)  # type: ignore[arg-type]
        simulator.add_call(account, f"call-{number}", plan)
        labels = f"labels: {{campaign: {campaign}}}"
        lines.append(f"    - {{reference_id: call-{number}, account: {account}, {labels}}}\n")
        expect(expected, account, campaign, plan, ending)
    return "".join(lines), expected


async def test_every_call_counts_once_however_often_the_exporter_is_killed(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    chance = random.Random(seed)
    scrapes = Scrapes()
    config, ledger = tmp_path / "config.yaml", tmp_path / "ledger.db"
    async with Simulator(accounts=ACCOUNTS) as simulator:
        calls, expected = fill(simulator, chance)
        accounts = "".join(
            f"  - {{name: {account.name}, api_key: {account.api_key}, secret_key: s, "
            f"base_url: '{simulator.url}', rate_limit: 300}}\n"
            for account in ACCOUNTS
        )
        config.write_text(
            f"accounts:\n{accounts}polling: {{interval: 1s, max_interval: 2s}}\n"
            f"balance: {{interval: 0}}\nledger: {{url: 'sqlite:///{ledger}'}}\n"
            f"watch:\n  labels: [campaign]\n  calls:\n{calls}"
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
    with closing(sqlite3.connect(ledger)) as database:
        query = "SELECT count(*), count(result) FROM calls"
        assert database.execute(query).fetchone() == (CALLS, CALLS)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
