from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from pathlib import Path

import pytest

from exporter.simulator import Account, Plan, Simulator
from tests.e2e.counting import (
    DURABLE,
    ENDS,
    Counts,
    Scrapes,
    counted,
    expect,
    scrape_for_ever,
)
from tests.e2e.processes import Exporter, total
from tests.subprocesses import UNMEASURED

KILLS = 22
CALLS = 2_000
SPREAD = 25.0  # seconds over which the calls finish

ACCOUNTS = (Account("main", "key-main", "s"), Account("other", "key-other", "s"))


def fill(simulator: Simulator, chance: random.Random) -> tuple[str, Counts]:
    """Place the calls; returns their configuration, and how they have to be counted."""
    lines, expected = [], Counts()
    for number in range(CALLS):
        account = chance.choice(ACCOUNTS).name
        campaign = chance.choice(("otp", "reminder"))
        options, ending = chance.choice(ENDS)
        rejected = "rejected" in options
        when = {"approval" if rejected else "queued": chance.uniform(0, SPREAD)}
        plan = Plan(unknown_for=chance.uniform(0, 2), **when, **options)  # type: ignore[arg-type]
        simulator.add_call(account, f"call-{number}", plan)
        lines.append(
            f"    - {{reference_id: call-{number}, account: {account}, "
            f"labels: {{campaign: {campaign}}}}}\n"
        )
        expect(expected, account, campaign, plan, ending)
    return "".join(lines), expected


async def test_every_call_counts_once_however_often_the_exporter_is_killed(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    chance = random.Random(seed)
    scrapes = Scrapes()
    config = tmp_path / "config.yaml"
    async with Simulator(accounts=ACCOUNTS) as simulator:
        calls, expected = fill(simulator, chance)
        accounts = "".join(
            f"  - {{name: {account.name}, api_key: {account.api_key}, secret_key: s, "
            f"base_url: '{simulator.url}', rate_limit: 300}}\n"
            for account in ACCOUNTS
        )
        config.write_text(
            f"accounts:\n{accounts}polling: {{interval: 1s, max_interval: 2s}}\n"
            "balance: {interval: 0}\n"
            f"ledger: {{url: 'sqlite:///{tmp_path}/ledger.db'}}\n"
            f"watch:\n  labels: [campaign]\n  calls:\n{calls}"
        )
        exporter = Exporter(config, environ=UNMEASURED)
        scraping = asyncio.create_task(scrape_for_ever(exporter, scrapes))
        try:
            for kill in range(KILLS):
                await exporter.start()
                if kill % 4 == 0:
                    # Anywhere in the start, before or after the ledger is open.
                    await asyncio.sleep(chance.uniform(0.0, 2.0))
                else:
                    await exporter.listening()
                    await asyncio.sleep(chance.uniform(0.0, 1.2))
                assert exporter.running.poll() is None, exporter.output
                await exporter.kill()
            await exporter.start()
            await exporter.listening()
            last = await exporter.until(lambda samples: total(samples, "esms_calls_total") >= CALLS)
            # A little longer: what would be counted twice would be counted now.
            await asyncio.sleep(0.5)
            last = await exporter.scrape()
        finally:
            scraping.cancel()
            await asyncio.gather(scraping, return_exceptions=True)
            await exporter.kill()
    assert scrapes.count > KILLS
    assert scrapes.backwards == []
    assert counted(last) == expected
    assert total(last, "esms_calls_watched") == 0
    assert total(last, "esms_call_result_delay_seconds_count") == CALLS
    with sqlite3.connect(tmp_path / "ledger.db") as ledger:
        assert ledger.execute("SELECT count(*), count(result) FROM calls").fetchone() == (
            CALLS,
            CALLS,
        )
        assert ledger.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    ledger.close()


@pytest.mark.parametrize("name", DURABLE)
def test_a_counter_that_goes_backwards_would_be_seen(name: str) -> None:
    scrapes = Scrapes()
    series = (f"{name}_x", frozenset[tuple[str, str]]())
    scrapes.add({series: 2.0})
    scrapes.add({series: 1.0})
    assert scrapes.backwards == [(series, 2.0, 1.0)]
