"""Every query of every dashboard, asked of a real Prometheus that scrapes the demo."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
import pytest_asyncio

from tests.dashboards import FILES, Json, Target, read, substituted, targets
from tests.e2e.processes import Demo
from tests.e2e.prometheus import KINDS, Prometheus, every_kind

pytestmark = pytest.mark.asyncio(loop_scope="module")

VALUES = {
    "job": ".+",
    "instance": ".+",
    "account": ".+",
    "split": "campaign",
    "__rate_interval": "20s",
    "__interval": "1s",
    "__range": "40s",
}
FIRST, SECOND = "replica-1:10375", "replica-2:10375"

LIVELY = (
    'sum(esms_calls_total{status="answered"}) > 15',
    'sum(esms_calls_total{result="failure"}) > 7',
    "sum(esms_call_keypresses_total) > 3",
    'sum(esms_messages_total{result="success"}) > 7',
    # The first refusal is older than the first scrape; the next comes after half a minute.
    "sum(increase(esms_auth_failures_total[10s])) > 0",
)
"""What has to hold of both replicas together before the queries are asked."""

OVERVIEW = "esms-overview.json"
CANARIES = {
    *("Last canary call", "Time since the last successful canary call"),
    *("Canary calls", "Stages of canary calls"),
}
# What the demo makes no numbers for: it has no targets, canary calls, callbacks, MQTT, TLS or
# shared ledger.
NOTHING = CANARIES | {
    *("Down", "Age of heartbeats", "Notifications", "Pending notifications"),
    *("Age of the oldest pending notification", "Requests to targets"),
    *("Duration of requests to targets", "MQTT broker", "MQTT connection errors"),
    *("MQTT messages", "Certificate expires in", "Spend per call"),
}
# What it makes none but zeros for: it has no callbacks, and no faults.
ZERO = {
    *("Price", "Price by $split", "Callbacks of the provider", "Failed requests by account"),
    *("Throttled requests", "Invalid values", "Ledger errors", "Ledger errors by instance"),
    *("Evictions", "Errors of sources", "Dropped log lines", "Failed TLS handshakes"),
}
# What each replica has by itself, and is added up.
OF_EACH = {
    *("Request rate by account", "Requests by outcome"),
    *("Open calls", "Open calls by account", "Open calls by state", "Open messages by state"),
}
WITHOUT_LABELS = CANARIES | {
    *("Delay of results", "Delay of results of messages", "Spend per call"),
    *("Open calls by state", "Open messages by state"),
}


async def get(server: Prometheus, path: str, **parameters: str) -> Any:  # Any: what was asked for
    document = await server.ask(path, **parameters)
    assert not document.get("warnings"), (parameters, document)
    assert not document.get("infos"), (parameters, document)
    return document["data"]


async def ask(server: Prometheus, target: Target, **values: str) -> list[float]:
    """Return the numbers that a query brings, of all series and times."""
    query = substituted(target.expression, VALUES | values)
    assert "$" not in query, query
    query = query.replace(" offset 1w", "")  # the demo has no last week
    now = time.time()
    if target.instant:
        data = await get(server, "query", query=query, time=str(now))
        samples = [series["value"] for series in data["result"]]
    else:
        times = {"start": str(now - 20), "end": str(now), "step": "5s"}
        data = await get(server, "query_range", query=query, **times)
        # Of native histograms, how many were counted.
        samples = [
            sample
            for series in data["result"]
            for sample in (
                *series.get("values", ()),
                *((at, one["count"]) for at, one in series.get("histograms", ())),
            )
        ]
    return [number for _, text in samples if not math.isnan(number := float(text))]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def servers(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[dict[str, Prometheus]]:
    """Yield servers of each kind that scrape one demo as two replicas that share a ledger."""
    folder = tmp_path_factory.mktemp("dashboards")
    async with Demo(folder) as demo:
        address = (await demo.ready()).removeprefix("http://")
        replicas = (
            f"        labels: {{instance: '{FIRST}'}}\n"
            f"      - targets: ['{address}']\n        labels: {{instance: '{SECOND}'}}\n"
        )
        async with every_kind(folder, address, replicas) as running:
            for prometheus in running:
                for expression in LIVELY:
                    await prometheus.until(expression, bool)
            yield dict(zip(KINDS, running, strict=True))


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, servers: dict[str, Prometheus]) -> Prometheus:
    return servers[request.param]


async def test_every_query_shows_what_the_demo_does(server: Prometheus) -> None:
    """The labels are those of the demo: a split by `campaign`."""
    bad = {}
    for target in targets():
        found = await ask(server, target)
        if target.panel in NOTHING:
            good = not found
        else:
            good = bool(found) if target.panel in ZERO else any(found)
        if not good:
            bad[target] = found
    assert not bad


async def test_filters_on_the_labels_of_the_user(server: Prometheus) -> None:
    """Grafana puts an ad hoc filter into every selector."""
    for target in targets():
        if target.file != OVERVIEW or target.panel in ZERO:
            continue
        filtered = re.sub(r"(\w+)\{", r'\1{campaign="otp", ', target.expression)
        found = await ask(
            server, Target(target.file, target.panel, filtered, target.instant), split="account"
        )
        assert any(found) == (target.panel not in WITHOUT_LABELS), (target, found)


async def test_replicas_are_not_counted_twice(server: Prometheus) -> None:
    """What they share is shown once; what each does by itself is added up."""
    for target in targets():
        both, one = await asyncio.gather(ask(server, target), ask(server, target, instance=FIRST))
        factor = sum(both) / (sum(one) or 1.0)
        if target.panel in OF_EACH:
            assert factor > 1.6, (target, both, one)
        elif target.file == OVERVIEW:
            assert factor < 1.4, (target, both, one)


async def test_variables_and_alerts_can_be_asked_for(server: Prometheus) -> None:
    expected = {
        "job": {"esms"},
        "instance": {FIRST, SECOND},
        "account": {"main", "hotline", "old-keys"},
        "split": {"account", "campaign"},
    }
    offered: dict[str, set[str]] = {}
    for board in map(read, FILES):
        (annotation,) = board["annotations"]["list"]
        alerts = await get(server, "query", query=annotation["expr"])
        assert alerts == {"resultType": "vector", "result": []}
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                found = await values(server, variable)
                assert offered.setdefault(variable["name"], found) == found
    assert offered == expected


async def values(server: Prometheus, variable: Json) -> set[str]:
    """Return what Grafana would offer for a variable of the type `query`."""
    query = substituted(variable["query"], VALUES)
    if labels := re.fullmatch(r"label_values\((.+), (\w+)\)", query):
        found: Iterable[str] = await get(
            server, f"label/{labels[2]}/values", **{"match[]": labels[1]}
        )
    else:
        names = re.fullmatch(r"label_names\((\w+)\)", query)
        assert names, query
        pattern = f'{{__name__=~".*{names[1]}.*"}}'
        found = await get(server, "labels", **{"match[]": pattern})
    kept = re.compile(variable.get("regex", "/.*/").strip("/"))
    return {name for name in found if kept.search(name)}
