from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from exporter.metrics.exposition import Renderer, compress
from exporter.metrics.families import Buckets, Family, Value, counter, gauge, histogram

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NUMBERS = st.floats(allow_nan=False)


def text_of(family: Family[Value] | Family[Buckets], *, openmetrics: bool = False) -> str:
    return "".join(family.lines(openmetrics=openmetrics)) + ("# EOF\n" if openmetrics else "")


@given(value=TEXTS, number=NUMBERS, help_text=TEXTS)
def test_what_is_written_is_what_is_read(value: str, number: float, help_text: str) -> None:
    # A carriage return is no escape of either format, and the parsers split lines at more than
    # line feeds; a label's value cannot hold one here, since configuration forbids it.
    for char in "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029":
        value, help_text = value.replace(char, ""), help_text.replace(char, "")
    family = gauge("a_gauge", help_text, "label")
    family.labels(value).value = number
    for read in (
        *text_string_to_metric_families(text_of(family)),
        *openmetrics_families(text_of(family, openmetrics=True)),  # type: ignore[no-untyped-call]
    ):
        (sample,) = read.samples
        assert sample.labels == {"label": value}
        assert sample.value == number
        assert read.type == "gauge"


def test_numbers_are_written_as_prometheus_reads_them() -> None:
    family = gauge("a_gauge", "Help.", "kind")
    for kind, number in (("nan", math.nan), ("inf", math.inf), ("small", -5e-324), ("big", 1e300)):
        family.labels(kind).value = number
    (read,) = text_string_to_metric_families(text_of(family))
    values = {sample.labels["kind"]: sample.value for sample in read.samples}
    assert math.isnan(values.pop("nan"))
    assert values == {"inf": math.inf, "small": -5e-324, "big": 1e300}


@given(st.lists(st.floats(0, 100), max_size=30))
def test_a_histogram_is_as_prometheus_client_has_it(values: list[float]) -> None:
    bounds = (0.5, 1.0, 10.0)
    ours = histogram("h_seconds", "Help.", bounds, "account")
    registry = CollectorRegistry()
    theirs = Histogram("h_seconds", "Help.", ["account"], buckets=bounds, registry=registry)
    ours.labels("a"), theirs.labels("a")
    for value in values:
        ours.labels("a").observe(value)
        theirs.labels("a").observe(value)
    expected = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }
    (read,) = text_string_to_metric_families(text_of(ours))
    assert {(s.name, *s.labels.values()): s.value for s in read.samples} == expected


def test_a_counter_is_as_prometheus_client_has_it() -> None:
    family = counter("c_total", 'Says "help" \\ and\nmore.')
    family.labels().value += 2
    registry = CollectorRegistry()
    Counter("c_total", 'Says "help" \\ and\nmore.', registry=registry).inc(2)
    (ours,) = text_string_to_metric_families(text_of(family))
    (theirs,) = registry.collect()
    assert ours.name == theirs.name == "c"
    assert ours.documentation == theirs.documentation
    assert ours.samples[0] == theirs.samples[0]
    assert "# TYPE c counter\n" in text_of(family, openmetrics=True)
    assert "# TYPE c_total counter\n" in text_of(family)


def test_a_bucket_of_another_version_falls_into_the_last() -> None:
    buckets = histogram("h", "Help.", (1.0, 2.0)).labels()
    for bound in ("1.0", "2", "+Inf", "1.5"):
        buckets.add(bound, 1.0)
    assert buckets.counts == [1, 1, 2]


def test_series_are_removed_by_a_label() -> None:
    family = gauge("g", "Help.", "account", "state")
    for account in ("a", "b"):
        family.labels(account, "new").value = 1.0
    family.remove("account", "a")
    family.remove("source", "b")
    assert text_of(family).splitlines()[2:] == ['g{account="b",state="new"} 1.0']


def test_the_wrong_number_of_labels_is_a_bug() -> None:
    with pytest.raises(ValueError, match="zip"):
        gauge("g", "Help.", "account").labels("a", "b")


def test_a_scrape_survives_that_the_process_cannot_be_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    renderer = Renderer()
    assert b"process_cpu_seconds_total" in renderer.render([], openmetrics=False)

    def fail(_registry: object) -> bytes:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("exporter.metrics.exposition.generate_latest", fail)
    family = gauge("g", "Help.")
    family.labels()
    for _ in range(2):
        body = renderer.render([family], openmetrics=False)
        assert body == b"# HELP g Help.\n# TYPE g gauge\ng 0.0\n"
    monkeypatch.undo()
    assert b"process_cpu_seconds_total" in renderer.render([], openmetrics=False)


def test_compressing_makes_smaller() -> None:
    body = b'esms_calls_watched{account="main",state="new"} 0.0\n' * 100
    assert len(compress(body)) < len(body) / 10
