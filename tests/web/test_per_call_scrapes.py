"""A series for each call, through the HTTP server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from exporter.config.models import MetricsConfig, PerCallConfig
from exporter.simulator import Plan
from tests.waiting import until
from tests.web.api_bench import Bench, serving

OPENMETRICS = "application/openmetrics-text"


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with serving(tmp_path) as bench:
        yield bench


async def show(bench: Bench, limit: int) -> None:
    wanted = MetricsConfig(per_call=PerCallConfig(enabled=limit > 0, limit=max(1, limit)))
    bench.config = bench.config.model_copy(update={"metrics": wanted})
    await bench.service.reload()


async def scrape(bench: Bench, accept: str = "", method: str = "GET") -> str:
    headers = {"Accept": accept, "Accept-Encoding": "gzip" if accept else "identity"}
    async with bench.http.request(method, f"{bench.url}/metrics", headers=headers) as answer:
        assert answer.status == 200
        return await answer.text()


async def shown(bench: Bench) -> dict[str, str]:
    """Return the states of calls by ReferenceId; the same in both formats."""
    found = {}
    openmetrics = openmetrics_families(await scrape(bench, OPENMETRICS))  # type: ignore[no-untyped-call]
    for name, families in (
        ("text", text_string_to_metric_families(await scrape(bench))),
        ("openmetrics", openmetrics),
    ):
        found[name] = {
            sample.labels["reference_id"]: sample.labels["state"]
            for family in families
            if family.name == "esms_call_state"
            for sample in family.samples
        }
    assert found["text"] == found["openmetrics"]
    return found["text"]


async def test_it_is_switched_on_and_off_with_the_configuration(bench: Bench) -> None:
    bench.simulator.add_call("main", 'a"\\', Plan(queued=100))
    bench.simulator.add_call("main", "b", Plan(queued=100))
    await bench.watch('a"\\')
    await bench.watch("b")
    calls = bench.service.accounts["main"].poller.calls
    await until(lambda: [call.state for call in calls.values()] == ["queued", "queued"])
    assert "esms_call_state" not in await scrape(bench)
    await show(bench, 10)
    assert await shown(bench) == {'a"\\': "queued", "b": "queued"}
    bench.simulator.add_call("main", "b", Plan(sent_result=0))
    await until(lambda: len(calls) == 1)
    assert await shown(bench) == {'a"\\': "queued", "b": "finished_failure"}
    assert await scrape(bench, method="HEAD") == ""
    await show(bench, 1)
    assert await shown(bench) == {"b": "finished_failure"}
    assert "\nesms_call_state_omitted_calls 1.0\n" in await scrape(bench)
    await show(bench, 0)
    assert "esms_call_state" not in await scrape(bench)


async def test_what_has_finished_is_shown_after_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        bench.simulator.add_call("main", "a", Plan())
        await bench.watch("a")
        await until(lambda: bench.service.calls.count == 0)
    wanted = MetricsConfig(per_call=PerCallConfig(enabled=True))
    async with serving(tmp_path, metrics=wanted) as bench:
        assert await shown(bench) == {"a": "finished_success"}
