from __future__ import annotations

from exporter.calls import ENDINGS, Finished, Key, Result, Status
from exporter.ledger.totals import Cell, Total, additions
from exporter.metrics.calls import CallMetrics
from exporter.metrics.families import Buckets, Family, Value

ANSWERED = Finished(Result.SUCCESS, Status.ANSWERED, 13.0, Key.ONE)


def values(family: Family[Value]) -> dict[tuple[str, ...], float]:
    return {labels: series.value for labels, series in family._series.items() if series.value}


def counts(family: Family[Buckets]) -> dict[tuple[str, ...], tuple[float, float]]:
    return {labels: (sum(s.counts), s.sum) for labels, s in family._series.items()}


def test_every_series_of_an_account_is_there_from_the_start() -> None:
    metrics = CallMetrics(("a", "b"), ("campaign",), 10)
    assert set(metrics.finished._series) == {
        (account, result.value, status.value, "")
        for account in ("a", "b")
        for result, status in ENDINGS
    }
    assert len(metrics.keypresses._series) == 2 * len(Key)
    assert counts(metrics.duration) == {("a", ""): (0, 0), ("b", ""): (0, 0)}
    assert counts(metrics.result_delay) == {("a",): (0, 0), ("b",): (0, 0)}


def test_a_finished_call() -> None:
    metrics = CallMetrics(("a",), ("campaign",), 10)
    metrics.learn(7, {"campaign": "otp", "team": "billing"})
    metrics.add(additions("a", 7, ANSWERED, 20.0))
    assert values(metrics.finished) == {("a", "success", "answered", "otp"): 1}
    assert values(metrics.keypresses) == {("a", "1", "otp"): 1}
    assert counts(metrics.duration)["a", "otp"] == (1, 13)
    assert counts(metrics.result_delay)["a",] == (1, 20)


def test_an_account_that_is_not_configured_is_not_shown() -> None:
    metrics = CallMetrics(("a",), (), 10)
    metrics.learn(7, {})
    metrics.add(additions("gone", 7, ANSWERED, 20.0))
    assert values(metrics.finished) == {}
    assert len(metrics.duration._series) == 1


def test_too_many_values_of_a_label_are_other() -> None:
    metrics = CallMetrics(("a",), ("x", "y"), 2)
    for row, (x, y) in enumerate([("1", "p"), ("2", "p"), ("3", ""), ("1", "q"), ("4", "r")]):
        metrics.learn(row, {"x": x, "y": y})
        metrics.learn(row, {"x": "known already", "y": ""})
        metrics.add([(Cell("a", row, Total.CALLS, "success/busy"), 1.0)])
    assert {labels[3:]: number for labels, number in values(metrics.finished).items()} == {
        ("1", "p"): 1,
        ("2", "p"): 1,
        ("other", ""): 1,
        ("1", "q"): 1,
        ("other", "other"): 1,
    }


def test_sets_that_look_alike_share_a_series() -> None:
    metrics = CallMetrics(("a",), ("x",), 2)
    for row, team in enumerate(["billing", "sales"]):
        metrics.learn(row, {"x": "1", "team": team})
        metrics.start("a", row)
        metrics.start("a", row)
        metrics.add([(Cell("a", row, Total.CALLS, "success/busy"), 1.0)])
    assert values(metrics.finished) == {("a", "success", "busy", "1"): 2}
