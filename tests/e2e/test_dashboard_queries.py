"""Every query of every dashboard, asked of a real Prometheus that scrapes the demo."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.dashboards import FILES, Json, Target, read, substituted, targets
from tests.e2e.processes import Demo
from tests.e2e.prometheus import KINDS, every_kind

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
    # The first refusal is older than the first scrape; the next comes after half a minute.
    "sum(increase(esms_auth_failures_total[10s])) > 0",
)
"""What has to hold of both replicas together before the queries are asked."""

OVERVIEW = "esms-overview.json"
CANARIES = {
    *("Last canary call", "Time since the last successful canary call"),
    *("Canary calls", "Stages of canary calls"),
}
# What the demo makes no numbers for: it has no targets, canary calls, MQTT, TLS or shared ledger.
NOTHING = CANARIES | {
    *("Down", "Age of heartbeats", "Notifications", "Pending notifications"),
    *("Age of the oldest pending notification", "Requests to targets"),
    *("Duration of requests to targets", "MQTT broker", "MQTT connection errors"),
    *("MQTT messages", "Certificate expires in"),
}
# What it makes none but zeros for: it has no callbacks, and no faults.
ZERO = {
    *("Price", "Price by $split", "Callbacks of the provider", "Failed requests by account"),
    *("Throttled requests", "Unusable values", "Ledger errors", "Ledger errors by instance"),
    *("Evictions", "Errors of sources", "Dropped log lines", "Failed TLS handshakes"),
}
# What each replica has by itself, and is added up.
OF_EACH = {
    *("Request rate by account", "Requests by outcome"),
    *("Open calls", "Open calls by account", "Open calls by state"),
}
WITHOUT_LABELS = CANARIES | {"Delay of results", "Open calls by state"}


class Scene:
    """The demo, scraped as if it were two replicas that share a ledger."""

    def __init__(self, address: str, http: aiohttp.ClientSession) -> None:
        self._address = address
        self._http = http

    async def get(self, path: str, **parameters: str) -> Any:  # Any: whatever was asked for
        url = f"http://{self._address}/api/v1/{path}"
        async with self._http.get(url, params=parameters) as answer:
            document = await answer.json()
        assert document["status"] == "success", (parameters, document)
        assert not document.get("warnings"), (parameters, document)
        assert not document.get("infos"), (parameters, document)
        return document["data"]

    async def ask(self, target: Target, **values: str) -> list[float]:
        """Return the numbers that a query brings, of all series and times."""
        query = substituted(target.expression, VALUES | values)
        assert "$" not in query, query
        now = time.time()
        if target.instant:
            data = await self.get("query", query=query, time=str(now))
            samples = [series["value"] for series in data["result"]]
        else:
            data = await self.get(
                "query_range", query=query, start=str(now - 20), end=str(now), step="5s"
            )
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
async def scenes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Scene]]:
    """Yield one demo as each kind of server sees it."""
    folder = tmp_path_factory.mktemp("dashboards")
    async with Demo(folder) as demo:
        address = (await demo.ready()).removeprefix("http://")
        replicas = (
            f"        labels: {{instance: '{FIRST}'}}\n"
            f"      - targets: ['{address}']\n        labels: {{instance: '{SECOND}'}}\n"
        )
        async with (
            every_kind(folder, address, replicas) as servers,
            aiohttp.ClientSession() as http,
        ):
            for prometheus in servers:
                for expression in LIVELY:
                    await prometheus.until(expression, bool)
            yield {
                kind: Scene(prometheus.address, http)
                for kind, prometheus in zip(KINDS, servers, strict=True)
            }


@pytest.fixture(params=KINDS)
def scene(request: pytest.FixtureRequest, scenes: dict[str, Scene]) -> Scene:
    return scenes[request.param]


async def test_every_query_shows_what_the_demo_does(scene: Scene) -> None:
    """The labels are those of the demo: a split by `campaign`."""
    bad = {}
    for target in targets():
        found = await scene.ask(target)
        if target.panel in NOTHING:
            good = not found
        else:
            good = bool(found) if target.panel in ZERO else any(found)
        if not good:
            bad[target] = found
    assert not bad


async def test_filters_on_the_labels_of_the_user(scene: Scene) -> None:
    """Grafana puts an ad hoc filter into every selector."""
    for target in targets():
        if target.file != OVERVIEW or target.panel in ZERO:
            continue
        filtered = re.sub(r"(\w+)\{", r'\1{campaign="otp", ', target.expression)
        found = await scene.ask(
            Target(target.file, target.panel, filtered, target.instant), split="account"
        )
        assert any(found) == (target.panel not in WITHOUT_LABELS), (target, found)


async def test_replicas_are_not_counted_twice(scene: Scene) -> None:
    """What they share is shown once; what each does by itself is added up."""
    for target in targets():
        both, one = await asyncio.gather(scene.ask(target), scene.ask(target, instance=FIRST))
        factor = sum(both) / (sum(one) or 1.0)
        if target.panel in OF_EACH:
            assert factor > 1.6, (target, both, one)
        elif target.file == OVERVIEW:
            assert factor < 1.4, (target, both, one)


async def test_variables_and_alerts_can_be_asked_for(scene: Scene) -> None:
    expected = {
        "job": {"esms"},
        "instance": {FIRST, SECOND},
        "account": {"main", "hotline", "old-keys"},
        "split": {"account", "campaign"},
    }
    offered: dict[str, set[str]] = {}
    for board in map(read, FILES):
        (annotation,) = board["annotations"]["list"]
        alerts = await scene.get("query", query=annotation["expr"])
        assert alerts == {"resultType": "vector", "result": []}
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                found = await values(scene, variable)
                assert offered.setdefault(variable["name"], found) == found
    assert offered == expected


async def values(scene: Scene, variable: Json) -> set[str]:
    """Return what Grafana would offer for a variable of the type `query`."""
    query = substituted(variable["query"], VALUES)
    if labels := re.fullmatch(r"label_values\((.+), (\w+)\)", query):
        found: Iterable[str] = await scene.get(
            f"label/{labels[2]}/values", **{"match[]": labels[1]}
        )
    else:
        names = re.fullmatch(r"label_names\((\w+)\)", query)
        assert names, query
        pattern = f'{{__name__=~".*{names[1]}.*"}}'
        found = await scene.get("labels", **{"match[]": pattern})
    kept = re.compile(variable.get("regex", "/.*/").strip("/"))
    return {name for name in found if kept.search(name)}
