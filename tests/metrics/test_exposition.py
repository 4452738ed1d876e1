from __future__ import annotations

import asyncio
from collections import UserDict
from collections.abc import ItemsView, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from structlog.testing import capture_logs

from exporter.metrics.exposition import Exposition, compress
from exporter.metrics.reading import Reading, Registry, Values
from exporter.polling.stats import Distribution

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NUMBERS = st.floats() | st.integers(-(10**20), 10**20) | st.booleans()
SERIES = st.dictionaries(st.tuples(TEXTS, TEXTS), NUMBERS, max_size=5)


def text(exposition: Exposition, *, openmetrics: bool = False) -> str:
    return asyncio.run(exposition.render(openmetrics=openmetrics)).decode()


@settings(max_examples=50)
@given(help_text=TEXTS, scrapes=st.lists(SERIES, min_size=1, max_size=3), counted=TEXTS)
def test_readings_are_written_as_prometheus_client_writes_them(
    help_text: str, scrapes: list[dict[tuple[str, str], float]], counted: str
) -> None:
    registry, users = Registry(), ["campaign", "team"]
    gauge = Reading(registry, "gauge", "a_gauge{account}", help_text)
    counter = Reading(registry, "counter", "a_total{z,a}", help_text)
    histogram = Reading(registry, "histogram", "a_seconds{account,x}", "Help.")
    Counter("library_total", help_text, ["label"], registry=registry).labels(counted).inc()
    exposition = Exposition(registry)
    for series in scrapes:
        user = users.pop(0) if len(users) > 1 else users[0]  # a configuration that changes
        gauge.read_from(lambda series=series: series, lambda user=user: (user,))  # type: ignore[misc]
        counter.read_from(lambda series=series: series)  # type: ignore[misc]
        distributions = {labels: Distribution((0.1, 2.5, 1e6)) for labels in series}
        for labels, number in series.items():
            distributions[labels].observe(number)
        histogram.read_from(lambda shown=distributions: shown)  # type: ignore[misc]
        assert text(exposition) == generate_latest(registry).decode()
        openmetrics: bytes = generate_openmetrics(registry)  # type: ignore[no-untyped-call]
        assert text(exposition, openmetrics=True) == openmetrics.decode()


@given(st.lists(st.floats(0, 100), max_size=30))
def test_a_distribution_is_shown_as_a_histogram_of_prometheus_client(values: list[float]) -> None:
    bounds, ours, theirs = (0.5, 1.0, 10.0), Registry(), Registry()
    distribution = Distribution(bounds)
    reading = Reading(ours, "histogram", "h_seconds{account}", "Help.")
    reading.read_from(lambda: {"a": distribution})
    histogram = Histogram("h_seconds", "Help.", ["account"], buckets=bounds, registry=theirs)
    histogram.labels("a")
    for value in values:
        distribution.observe(value)
        histogram.labels("a").observe(value)
    assert text(Exposition(ours)) == generate_latest(theirs).decode()


class Broken(Collector):
    broken = True

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("half", "Help.", value=1)
        if self.broken:
            raise OSError(24, "Too many open files")


@pytest.mark.parametrize("openmetrics", [False, True])
def test_a_collector_that_fails_loses_its_own_metrics_alone(*, openmetrics: bool) -> None:
    registry = Registry()
    before = Reading(registry, "gauge", "before", "Help.")
    registry.register(collector := Broken())
    failing = Reading(registry, "gauge", "failing", "Help.")
    Counter("after", "Help.", registry=registry)
    before.read_from(lambda: 1)
    failing.read_from(lambda: 1 / 0)
    exposition = Exposition(registry)
    with capture_logs() as logs:
        for _ in range(2):
            shown = text(exposition, openmetrics=openmetrics)
            lines = [line for line in shown.splitlines() if not line.startswith("#")]
            assert lines == ["before 1.0", "after_total 0.0"]
        collector.broken = False
        assert "half 1.0" in text(exposition, openmetrics=openmetrics)
    assert [(log["collector"], log["kind"]) for log in logs] == [
        ("Broken", "OSError"),
        ("Reading", "ZeroDivisionError"),
    ]


async def test_others_get_their_turn_while_many_series_are_rendered() -> None:
    registry, numbers = Registry(), {(str(number),): float(number) for number in range(20_000)}
    reading = Reading(registry, "gauge", "a_gauge{number}", "Help.")
    reading.read_from(lambda: numbers)
    rendering = asyncio.create_task(Exposition(registry).render(openmetrics=False))
    turns = 0
    while not rendering.done():
        turns += 1
        await asyncio.sleep(0)
        numbers.pop((str(20_000 - turns),), None)  # what goes meanwhile harms nothing
    assert turns > 2
    assert rendering.result().count(b"\n") == 20_002


def test_labels_that_change_during_a_scrape_change_with_the_next_one() -> None:
    registry, names = Registry(), ["campaign"]

    class Reloaded(UserDict[str, float]):
        """No values; a reload changes the labels when they are read."""

        def items(self) -> ItemsView[str, float]:
            names[:] = ["team", "campaign"]
            return super().items()

    gauge = Reading(registry, "gauge", "a_gauge{account}", "Help.")
    values: Values = {("main", "otp"): Reloaded(), ("other", "otp"): 1.0}
    gauge.read_from(lambda: values, lambda: tuple(names))
    assert 'a_gauge{account="other",campaign="otp"} 1.0\n' in text(Exposition(registry))


def test_compressing_makes_smaller() -> None:
    body = b'esms_calls_watched{account="main",state="new"} 0.0\n' * 100
    assert len(compress(body)) < len(body) / 10
