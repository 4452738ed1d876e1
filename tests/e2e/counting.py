"""How calls have to be counted, how they are, and what a counter may never do."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp

from exporter.simulator import Plan
from tests.e2e.processes import Exporter, Series

Counts = Counter[tuple[str, ...]]

DURABLE = (
    *("esms_calls_total", "esms_call_duration_seconds", "esms_call_keypresses_total"),
    *("esms_call_result_delay_seconds", "esms_call_price_vnd"),
    *("esms_messages_total", "esms_message_result_delay_seconds", "esms_message_price_vnd"),
)

# (what the provider says in the end, how it is counted)
ENDS: list[tuple[dict[str, object], tuple[str, str]]] = [
    ({"duration": 7}, ("success", "answered")),
    ({"duration": 61, "ivr": "1"}, ("success", "answered")),
    ({"duration": 0, "call_status": "NOANSWERED"}, ("success", "no_answer")),
    ({"duration": 0, "call_status": "", "sent_result": 0}, ("failure", "none")),
    ({"duration": 0, "call_status": "BUSY", "sent_result": 0, "ivr": "#"}, ("failure", "busy")),
    ({"rejected": True}, ("failure", "rejected")),
]


def plan(
    chance: random.Random, spread: float, which: int | None = None, unknown_for: float = 0.0
) -> tuple[Plan, tuple[str, str]]:
    """Return what becomes of a call within `spread` seconds, and how it has to be counted."""
    options, ending = chance.choice(ENDS) if which is None else ENDS[which % len(ENDS)]
    wait = {"approval" if "rejected" in options else "queued": chance.uniform(0, spread)}
    return Plan(unknown_for=unknown_for, **wait, **options), ending  # type: ignore[arg-type]


class Scrapes:
    """Every scrape of every life, and whether a durable counter ever went backwards."""

    def __init__(self) -> None:
        self.count = 0
        self.backwards: list[tuple[Series, float, float]] = []
        self.last: dict[Series, float] = {}  # of every series that ever was
        self.newest: dict[Series, float] = {}  # the last scrape

    def add(self, samples: dict[Series, float]) -> None:
        self.count += 1
        self.newest = samples
        for series, value in samples.items():
            if series[0].startswith(DURABLE):
                if value < (before := self.last.get(series, 0.0)):
                    self.backwards.append((series, before, value))
                self.last[series] = value


@asynccontextmanager
async def scraped(exporter: Exporter, scrapes: Scrapes, pause: float = 0.02) -> AsyncIterator[None]:
    """Scrape all the time; the last connection is closed at the end."""
    task = asyncio.create_task(scrape_for_ever(exporter, scrapes, pause))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def scrape_for_ever(exporter: Exporter, scrapes: Scrapes, pause: float = 0.02) -> None:
    while True:
        try:
            if exporter.url:
                scrapes.add(await exporter.scrape())
        except (aiohttp.ClientError, OSError):
            await asyncio.sleep(0.05)  # killed just now, or not to be reached
        await asyncio.sleep(pause)


def expect(
    expected: Counts, account: str, campaign: str, plan: Plan, ending: tuple[str, str]
) -> None:
    """Add how one call or message has to be counted."""
    if plan.receivers:
        expected["messages", account, campaign, "success"] += plan.receivers - plan.failed
        expected["messages", account, campaign, "failure"] += plan.failed
        return
    expected["calls", account, campaign, *ending] += 1
    if ending[1] == "answered":
        expected["count", account, campaign] += 1
        expected["sum", account, campaign] += int(plan.duration)
    if plan.ivr and not plan.rejected:
        key = {"#": "hash"}.get(plan.ivr, plan.ivr)
        expected["key", account, campaign, key] += 1


def counted(samples: Mapping[Series, float]) -> Counts:
    """Return how calls and messages are counted."""
    found = Counts()
    for (name, pairs), value in samples.items():
        labels = dict(pairs)
        where = (labels.get("account", ""), labels.get("campaign", ""))
        if name == "esms_calls_total":
            key: tuple[str, ...] = ("calls", *where, labels["result"], labels["status"])
        elif name == "esms_messages_total":
            key = ("messages", *where, labels["result"])
        elif name == "esms_call_keypresses_total":
            key = ("key", *where, labels["key"])
        elif name in ("esms_call_duration_seconds_count", "esms_call_duration_seconds_sum"):
            key = (name.rpartition("_")[2], *where)
        else:
            continue
        assert value == int(value)
        found[key] += int(value)
    return +found  # without zeros
