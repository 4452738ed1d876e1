from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from exporter.simulator import Account, Plan, Simulator
from tests.e2e.processes import Exporter, Series, total

KILLS = 22
CALLS = 2_000
SPREAD = 25.0  # seconds over which the calls finish

DURABLE = (
    "esms_calls_total",
    "esms_call_duration_seconds",
    "esms_call_keypresses_total",
    "esms_call_result_delay_seconds",
    "esms_call_price_vnd",
)
ACCOUNTS = (Account("main", "key-main", "s"), Account("other", "key-other", "s"))

# (what the provider says in the end, how it is counted)
ENDS: list[tuple[dict[str, object], tuple[str, str]]] = [
    ({"duration": 7}, ("success", "answered")),
    ({"duration": 61, "ivr": "1"}, ("success", "answered")),
    ({"duration": 0, "call_status": "NOANSWERED"}, ("success", "no_answer")),
    ({"duration": 0, "call_status": "", "sent_result": 0}, ("failure", "none")),
    ({"duration": 0, "call_status": "BUSY", "sent_result": 0, "ivr": "#"}, ("failure", "busy")),
    ({"rejected": True}, ("failure", "rejected")),
]


class Scrapes:
    """Every scrape of every life, and whether a durable counter ever went backwards."""

    def __init__(self) -> None:
        self.count = 0
        self.backwards: list[tuple[Series, float, float]] = []
        self._last: dict[Series, float] = {}

    def add(self, samples: dict[Series, float]) -> None:
        self.count += 1
        for series, value in samples.items():
            if series[0].startswith(DURABLE):
                if value < (before := self._last.get(series, 0.0)):
                    self.backwards.append((series, before, value))
                self._last[series] = value


async def scrape_for_ever(exporter: Exporter, scrapes: Scrapes) -> None:
    while True:
        try:
            if exporter.url:
                scrapes.add(await exporter.scrape())
        except (aiohttp.ClientError, OSError):
            await asyncio.sleep(0.05)  # killed just now
        await asyncio.sleep(0.02)


def fill(simulator: Simulator, chance: random.Random) -> tuple[str, Counter[tuple[str, ...]]]:
    """Place the calls; returns their configuration, and how they have to be counted."""
    lines, expected = [], Counter[tuple[str, ...]]()
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
        expected["calls", account, campaign, *ending] += 1
        if ending[1] == "answered":
            expected["count", account, campaign] += 1
            expected["sum", account, campaign] += int(plan.duration)
        if plan.ivr and not rejected:
            key = {"#": "hash"}.get(plan.ivr, plan.ivr)
            expected["key", account, campaign, key] += 1
    return "".join(lines), expected


def counted(samples: dict[Series, float]) -> Counter[tuple[str, ...]]:
    found = Counter[tuple[str, ...]]()
    for (name, pairs), value in samples.items():
        labels = dict(pairs)
        where = (labels.get("account", ""), labels.get("campaign", ""))
        if name == "esms_calls_total":
            key: tuple[str, ...] = ("calls", *where, labels["result"], labels["status"])
        elif name == "esms_call_keypresses_total":
            key = ("key", *where, labels["key"])
        elif name in ("esms_call_duration_seconds_count", "esms_call_duration_seconds_sum"):
            key = (name.rpartition("_")[2], *where)
        else:
            continue
        assert value == int(value)
        found[key] += int(value)
    return +found  # without zeros


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
            f"ledger: {{url: 'sqlite:///{tmp_path}/ledger.db'}}\n"
            f"watch:\n  labels: [campaign]\n  calls:\n{calls}"
        )
        # Coverage would be lost with the process, and makes it start slowly.
        unmeasured = {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""}
        exporter = Exporter(config, environ=unmeasured)
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
                assert exporter.running.returncode is None, exporter.output
                await exporter.kill()
            await exporter.start()
            await exporter.listening()
            last = await exporter.until(
                lambda samples: total(samples, "esms_calls_total") >= CALLS, 120
            )
            # A little longer: what would be counted twice would be counted now.
            await asyncio.sleep(0.5)
            last = await exporter.scrape()
        finally:
            scraping.cancel()
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
