"""Labels within their limits, as Prometheus reads them, over restarts and reloads."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from exporter.config import ApiConfig, WatchConfig
from exporter.simulator import Plan
from tests.waiting import until
from tests.web.bench import TOKENS, Bench, serving

LABELS = ("campaign", "region")
_numbers = count()


async def samples(bench: Bench) -> list[tuple[str, dict[str, str], float]]:
    async with bench.http.get(f"{bench.url}/metrics") as answer:
        text = await answer.text()
    return [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


async def counted(bench: Bench) -> dict[tuple[str, str, str], float]:
    """Return how many calls are shown as finished, by account, campaign and region."""
    found: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    for name, labels, value in await samples(bench):
        if name == "esms_calls_total":
            found[labels["account"], labels["campaign"], labels.get("region", "")] += value
    return {key: value for key, value in found.items() if value}


async def finish(bench: Bench, account: str, *campaigns: str, region: str = "n") -> None:
    """Push a call for each campaign, one after the other, and wait until all have finished."""
    before = await finished(bench)
    for campaign in campaigns:
        name = f"call-{next(_numbers)}"
        bench.simulator.add_call(account, name, Plan())
        status, _ = await bench.push(name, account=account, campaign=campaign, region=region)
        assert status == 202
        await until(lambda: not bench.app.calls.count)
    async with asyncio.timeout(60):
        while await finished(bench) < before + len(campaigns):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def finished(bench: Bench) -> float:
    """Return how many calls have finished, whatever has become of their series."""
    name = "esms_call_result_delay_seconds_count"
    return sum(value for kind, _, value in await samples(bench) if kind == name)


async def until_shown(bench: Bench, expected: Mapping[tuple[str, str, str], float]) -> None:
    """Wait until these are shown: exporters that share a ledger look at it once a second."""
    async with asyncio.timeout(60):
        while await counted(bench) != expected:  # noqa: ASYNC110 - nobody tells the test
            await asyncio.sleep(0.2)


async def test_labels_make_room(tmp_path: Path) -> None:
    watch = WatchConfig(labels=LABELS, max_label_values=2, api=ApiConfig(tokens=TOKENS))
    async with serving(tmp_path, watch=watch) as bench:
        await finish(bench, "b", "otp")
        # A program that may use one account only changes the labels of that one.
        await finish(bench, "main", "a", "b", "c", "d", "c")
        shown = {("b", "otp", "n"): 1.0, ("main", "c", "n"): 2, ("main", "d", "n"): 1}
        await until_shown(bench, shown)
        # Series that have disappeared are gone with all that belongs to them.
        kinds = {labels.get("campaign") for _, labels, _ in await samples(bench)}
        assert kinds - {None} == {"", "otp", "other", "c", "d"}
    async with serving(tmp_path, watch=watch) as bench:
        await until_shown(bench, shown)
        await bench.configure(max_label_values=100)
        await until_shown(bench, shown)
        await finish(bench, "main", "a")
        await until_shown(bench, shown := shown | {("main", "a", "n"): 1})
    async with serving(tmp_path, watch=watch) as bench:
        # Lowered again: what was used last stays.
        lowered = {("b", "otp", "n"): 1.0, ("main", "c", "n"): 2, ("main", "a", "n"): 1}
        await until_shown(bench, lowered)
        await bench.configure(labels=("campaign",))
        await until_shown(bench, {(*key[:2], ""): value for key, value in lowered.items()})
        await bench.configure(labels=LABELS)
        await until_shown(bench, lowered)
