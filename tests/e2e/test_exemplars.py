"""Exemplars of finished calls, from an exporter to real Prometheus servers."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import aiohttp

from exporter.metrics.exposition import OPENMETRICS, TEXT
from exporter.simulator import Plan, Simulator
from tests.dashboards import substituted, targets
from tests.e2e.processes import Exporter, configure, listed
from tests.e2e.prometheus import Prometheus, every_kind
from tests.e2e.test_dashboard_queries import VALUES
from tests.waiting import deadline

# No backslash: Prometheus keeps its escape in the labels of exemplars.
CALL, LONG, TOO_LONG = "a/b?c%d&e#f~1", "L" * 116, "T" * 117
EXPECTED = {
    'esms_calls_total{status="answered"}': {CALL},
    'esms_calls_total{status="busy"}': {LONG},
    'esms_calls_total{status="no_answer"}': set(),
    # Prometheus may convert the buckets to a native histogram.
    '{__name__=~"esms_call_duration_seconds(_bucket)?"}': {CALL},
    '{__name__=~"esms_call_result_delay_seconds(_bucket)?", account="main"}': {CALL},
    "esms_messages_total": {"message"},
    '{__name__=~"esms_message_result_delay_seconds(_bucket)?"}': {"message"},
}


async def stored(server: Prometheus, query: str) -> set[str]:
    """Return the ids in the exemplars that a server has stored for a query."""
    now = time.time()
    times = {"start": str(now - 3600), "end": str(now + 3600)}
    series = (await server.ask("query_exemplars", query=query, **times))["data"]
    return {one["labels"]["reference_id"] for each in series for one in each["exemplars"]}


async def body(http: aiohttp.ClientSession, exporter: Exporter, accept: str) -> str:
    async with http.get(f"{exporter.url}/metrics", headers={"Accept": accept}) as answer:
        assert answer.content_type == accept.partition(";")[0]
        return await answer.text()


async def test_prometheus_stores_the_ids_of_finished_calls(
    tmp_path: Path, simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    simulator.add_call("main", CALL, Plan(duration=7))
    simulator.add_call("other", LONG, Plan(call_status="BUSY", sent_result=0))
    simulator.add_call("other", TOO_LONG, Plan(call_status="NOANSWER"))
    simulator.add_call("main", "message", Plan(receivers=2))
    others = [listed(name, "other") for name in (LONG, TOO_LONG)]
    calls = [listed(CALL), *others, {**listed("message"), "kind": "message"}]
    config = configure(tmp_path, simulator, calls, metrics={"exemplars": True})
    async with Exporter(config) as exporter:
        address = (await exporter.ready()).removeprefix("http://")
        async with every_kind(tmp_path, address) as servers:
            for server in servers:
                for metric, number in (("esms_calls_total", 3), ("esms_messages_total", 2)):
                    await server.until(f"sum({metric}) == {number}", bool)
                for query, ids in EXPECTED.items():
                    async with deadline():
                        while (found := await stored(server, query)) != ids:
                            assert found < ids, (query, found)
                            await asyncio.sleep(0.2)
                    for target in targets():
                        if target.exemplars:
                            assert await stored(server, substituted(target.expression, VALUES))
        assert " # " not in await body(http, exporter, TEXT)
        configure(tmp_path, simulator, calls)
        exporter.send(signal.SIGHUP)
        async with deadline():
            text = " # "
            while " # " in text:
                await asyncio.sleep(0.1)
                text = await body(http, exporter, OPENMETRICS)
        assert LONG not in text
