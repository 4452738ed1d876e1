from __future__ import annotations

from exporter.calls import ENDINGS, Finished, Key, Result, Status
from exporter.ledger.records import SeriesChanges
from exporter.ledger.totals import Cell, Total, additions
from exporter.metrics.calls import CallMetrics
from exporter.metrics.families import Buckets, Family, Value

ANSWERED = Finished(Result.SUCCESS, Status.ANSWERED, 13.0, Key.ONE)


def values(family: Family[Value]) -> dict[tuple[str, ...], float]:
    return {labels: series.value for labels, series in family._series.items() if series.value}


def counts(family: Family[Buckets]) -> dict[tuple[str, ...], tuple[float, float]]:
    return {labels: (sum(s.counts), s.sum) for labels, s in family._series.items()}


def test_every_series_of_an_account_is_there_from_the_start() -> None:
    metrics = CallMetrics(("a", "b"), ("campaign",))
    assert set(metrics.finished._series) == {
        (account, result.value, status.value, "")
        for account in ("a", "b")
        for result, status in ENDINGS
    }
    assert len(metrics.keypresses._series) == 2 * len(Key)
    assert counts(metrics.duration) == {("a", ""): (0, 0), ("b", ""): (0, 0)}
    assert counts(metrics.result_delay) == {("a",): (0, 0), ("b",): (0, 0)}


def test_a_finished_call() -> None:
    metrics = CallMetrics(("a",), ("campaign",))
    metrics.learn(7, {"campaign": "otp", "team": "billing"})
    metrics.add(additions("a", 7, ANSWERED, 20.0))
    assert values(metrics.finished) == {("a", "success", "answered", "otp"): 1}
    assert values(metrics.keypresses) == {("a", "1", "otp"): 1}
    assert counts(metrics.duration)["a", "otp"] == (1, 13)
    assert counts(metrics.result_delay)["a",] == (1, 20)


def test_an_account_that_is_not_configured_is_not_shown() -> None:
    metrics = CallMetrics(("a",), ())
    metrics.learn(7, {})
    metrics.add(additions("gone", 7, ANSWERED, 20.0))
    assert values(metrics.finished) == {}
    assert len(metrics.duration._series) == 1


def test_a_set_that_is_evicted_takes_its_series_along() -> None:
    metrics = CallMetrics(("a", "b"), ("x",))
    for row, labels in enumerate([{"x": "1"}, {"x": "2"}, {"x": "1", "gone": "y"}, {"x": "other"}]):
        metrics.learn(row, labels)
        metrics.start("a", row)
        metrics.add(additions("a", row, ANSWERED, 20.0, 350.0))
    metrics.add(additions("b", 0, ANSWERED, 20.0))
    metrics.learn(4, {"x": "3"})
    metrics.change_series(SeriesChanges([("a", 4), ("c", 4)], [("a", 1)]))
    assert values(metrics.finished) == {
        ("a", "success", "answered", "1"): 2,
        ("a", "success", "answered", "other"): 1,
        ("b", "success", "answered", "1"): 1,
    }
    assert values(metrics.price) == {("a", "1"): 700, ("a", "other"): 350}
    assert counts(metrics.duration)["a", "other"] == (1, 13)
    # Its delays stay: they have no labels but the account.
    assert counts(metrics.result_delay)["a",] == (4, 80)
    for family in (metrics.finished, metrics.keypresses, metrics.price, metrics.duration):
        assert {labels[-1] for labels, _ in family.series()} == {"", "1", "3", "other"}
    # One of two that are shown alike leaves the series to the other.
    metrics.change_series(SeriesChanges([], [("a", 2), ("c", 9)]))
    assert ("a", "1") in dict(metrics.price.series())
    assert set(metrics.label_sets) == {0, 3, 4}
    assert values(metrics.price)["a", "1"] == 700
    # And one that returns begins at 0.
    metrics.learn(1, {"x": "2"})
    metrics.start("a", 1)
    assert dict(metrics.price.series())["a", "2"].value == 0


def test_sets_that_look_alike_share_a_series() -> None:
    metrics = CallMetrics(("a",), ("x",))
    for row, team in enumerate(["billing", "sales"]):
        metrics.learn(row, {"x": "1", "team": team})
        metrics.start("a", row)
        metrics.start("a", row)
        metrics.add([(Cell("a", row, Total.CALLS, "success/busy"), 1.0)])
    assert values(metrics.finished) == {("a", "success", "busy", "1"): 2}
