"""Labels within their limits, as Prometheus reads them, over restarts and reloads."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from exporter.config import ApiConfig, LedgerConfig, WatchConfig
from exporter.ledger.labels import OTHER
from exporter.secrets import Secret
from exporter.simulator import Plan
from tests.increases import Increases
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


async def scraped(bench: Bench, prometheus: Increases) -> set[str]:
    """Have Prometheus scrape the calls; returns the campaigns of the account `main`."""
    scrape = [one for one in await samples(bench) if one[0] == "esms_calls_total"]
    prometheus.scrape({(name, *labels.values()): value for name, labels, value in scrape})
    return {one["campaign"] for _, one, _ in scrape if one["account"] == "main"}


async def until_shown(bench: Bench, expected: Mapping[tuple[str, str, str], float]) -> None:
    """Wait until these are shown: exporters that share a ledger look at it once a second."""
    async with asyncio.timeout(60):
        while await counted(bench) != expected:  # noqa: ASYNC110 - nobody tells the test
            await asyncio.sleep(0.2)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LedgerConfig]:
    if request.param == "sqlite":
        yield LedgerConfig(url=Secret(f"sqlite:///{tmp_path}/ledger.db"))
        return
    with request.getfixturevalue("server").database() as url:
        yield LedgerConfig(url=Secret(url.replace("+psycopg", "")))


async def test_prometheus_counts_each_call_once(tmp_path: Path, ledger: LedgerConfig) -> None:
    watch = WatchConfig(labels=LABELS, max_label_values=2, api=ApiConfig(tokens=TOKENS))
    prometheus, used, left = Increases(), list[str](), list[str]()
    placed = 0
    for campaigns in ("abcad", "bbcda"):
        async with serving(tmp_path, ledger=ledger, watch=watch) as bench:
            for name in left:  # a simulator that was started anew does not know them
                bench.simulator.add_call("main", name, Plan(queued=1e6))
            for campaign in campaigns:
                left.append(f"call-{next(_numbers)}")
                used.append(campaign)
                bench.simulator.add_call("main", left[-1], Plan(queued=1e6))
                assert (await bench.push(left[-1], campaign=campaign, region="n"))[0] == 202
                expected = {"", *_newest(used)} | ({OTHER} if len(set(used)) > 2 else set())
                async with asyncio.timeout(60):
                    while await scraped(bench, prometheus) != expected:  # noqa: ASYNC110
                        await asyncio.sleep(0.2)
                # Some finish in series of their own, some after these have made room.
                if len(left) > 2:
                    bench.simulator.add_call("main", left.pop(len(used) % 3), Plan())
                    placed += 1
                async with asyncio.timeout(60):
                    while prometheus.sums.total() < placed:
                        await scraped(bench, prometheus)
                        await asyncio.sleep(0.2)
                assert prometheus.sums.total() == placed
            await bench.configure(max_label_values=1)
            await scraped(bench, prometheus)
            assert prometheus.sums.total() == placed == await finished(bench)


def _newest(used: list[str]) -> list[str]:
    """Return the two values that were used last."""
    return list(dict.fromkeys(reversed(used)))[:2]


async def test_labels_make_room(tmp_path: Path, ledger: LedgerConfig) -> None:
    watch = WatchConfig(labels=LABELS, max_label_values=2, api=ApiConfig(tokens=TOKENS))
    async with serving(tmp_path, ledger=ledger, watch=watch) as bench:
        await finish(bench, "b", "otp")
        # A program that may use one account only changes the labels of that one.
        await finish(bench, "main", "a", "b", "c", "d", "c")
        shown = {("b", "otp", "n"): 1.0, ("main", "c", "n"): 2, ("main", "d", "n"): 1}
        await until_shown(bench, shown)
        # Series that have disappeared are gone with all that belongs to them.
        kinds = {labels.get("campaign") for _, labels, _ in await samples(bench)}
        assert kinds - {None} == {"", "otp", "other", "c", "d"}
    async with serving(tmp_path, ledger=ledger, watch=watch) as bench:
        await until_shown(bench, shown)
        await bench.configure(max_label_values=100)
        await until_shown(bench, shown)
        await finish(bench, "main", "a")
        await until_shown(bench, shown := shown | {("main", "a", "n"): 1})
    async with serving(tmp_path, ledger=ledger, watch=watch) as bench:
        # Lowered again: what was used last stays.
        lowered = {("b", "otp", "n"): 1.0, ("main", "c", "n"): 2, ("main", "a", "n"): 1}
        await until_shown(bench, lowered)
        await bench.configure(labels=("campaign",))
        await until_shown(bench, {(*key[:2], ""): value for key, value in lowered.items()})
        await bench.configure(labels=LABELS)
        await until_shown(bench, lowered)


async def test_series_are_limited(tmp_path: Path, ledger: LedgerConfig) -> None:
    watch = WatchConfig(labels=LABELS, max_label_sets=5, api=ApiConfig(tokens=TOKENS))
    async with serving(tmp_path, ledger=ledger, watch=watch) as bench:
        for region in "xyz":
            await finish(bench, "main", *"abcd", region=region)
        shown = {("main", name, "z"): 1.0 for name in "abcd"} | {("main", "d", "y"): 1}
        await until_shown(bench, shown)
        await bench.configure(max_label_sets=1)
        await until_shown(bench, {("main", "d", "z"): 1})
