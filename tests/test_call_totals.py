from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest

from exporter.call_totals import CallTotals
from exporter.calls import ENDINGS, Finished, Key, Receivers, Result, Status
from exporter.ids import Kind
from exporter.ledger.totals import TotalKey, TotalKind, additions
from exporter.ledger.types import SeriesChanges, Snapshot
from exporter.metrics.catalogue import Catalogue
from tests.samples import samples, value

ANSWERED = Finished(Result.SUCCESS, Status.ANSWERED, 13.0, Key.ONE)


class Shown:
    """The totals of accounts, and what metrics show of them."""

    def __init__(self, *accounts: str, names: tuple[str, ...] = ("x",)) -> None:
        self.totals = CallTotals(names)
        self.totals.show(set(accounts), Snapshot({}, {}, set()))
        self.metrics = Catalogue()
        self.metrics.read_calls(self.totals)

    def finish(self, account: str, row: int, price: float | None = None) -> None:
        self.add(additions(account, row, ANSWERED, 20.0, price))

    def add(self, added: Iterable[tuple[TotalKey, float, object]]) -> None:
        self.totals.add((key, amount) for key, amount, _ in added)

    def learn(self, *label_sets: Mapping[str, str]) -> None:
        self.totals.learn(dict(enumerate(label_sets)))

    def values(self, name: str = "esms_calls_total") -> dict[tuple[str, ...], float]:
        """Return what series other than 0 show, by account and the user's labels."""
        names = ("account", *self.totals.names)
        return {
            tuple(one.labels[label] for label in names if label in one.labels): one.value
            for one in samples(self.metrics, name)
            if one.value
        }


def test_every_series_of_an_account_is_there_from_the_start() -> None:
    shown = Shown("a", "b")
    for name, size in (
        ("esms_calls_total", len(ENDINGS)),
        ("esms_call_keypresses_total", len(Key)),
        ("esms_call_duration_seconds_sum", 1),
        ("esms_call_result_delay_seconds_count", 1),
        ("esms_call_price_vnd_total", 1),
    ):
        series = samples(shown.metrics, name)
        assert [one.labels["account"] for one in series] == ["a"] * size + ["b"] * size
        assert value(shown.metrics, name) == 0


def test_a_finished_call() -> None:
    shown = Shown("a", names=("campaign",))
    shown.learn({"campaign": "otp", "team": "billing"})
    shown.finish("a", 0)
    labels = {"account": "a", "campaign": "otp"}
    ending = {"result": "success", "status": "answered"}
    assert value(shown.metrics, "esms_calls_total", **labels, **ending) == 1
    assert value(shown.metrics, "esms_calls_total") == 1
    assert value(shown.metrics, "esms_call_keypresses_total", **labels, key="1") == 1
    duration = "esms_call_duration_seconds"
    buckets = samples(shown.metrics, f"{duration}_bucket", campaign="otp")
    assert [one.labels["le"] for one in buckets if not one.value] == ["1.0", "3.0", "5.0", "10.0"]
    assert shown.values(f"{duration}_sum") == {("a", "otp"): 13}
    assert shown.values("esms_call_result_delay_seconds_sum") == {("a",): 20}


def test_what_is_added_to_an_account_that_is_not_exposed_is_dropped() -> None:
    shown = Shown("a")
    shown.learn({})
    shown.finish("gone", 0)
    shown.totals.start("gone", 0)
    assert shown.values() == {}
    assert len(samples(shown.metrics, "esms_call_price_vnd_total")) == 1


def test_a_label_set_of_another_exporter_is_not_shown_before_its_labels_are_known() -> None:
    shown = Shown("a")
    added = {key: amount for key, amount, _ in additions("a", 0, ANSWERED, 20.0)}
    shown.totals.add(added.items())
    assert shown.values() == {}
    shown.totals.show({"a"}, Snapshot({0: {"x": "1"}}, added, {("a", 0)}))
    shown.finish("a", 0)
    assert shown.values() == {("a", "1"): 2}


@pytest.mark.parametrize("cell", ["1", "1.0", "99.5", "+Inf"])
def test_a_bucket_of_another_version_is_not_lost(cell: str) -> None:
    shown = Shown("a")
    shown.learn({})
    shown.totals.add([(TotalKey("a", 0, TotalKind.DURATION, cell), 1.0)])
    shown.totals.add([(TotalKey("a", 0, TotalKind.CALLS, "success/of_another_version"), 1.0)])
    assert value(shown.metrics, "esms_call_duration_seconds_count") == 1
    first = value(shown.metrics, "esms_call_duration_seconds_bucket", le="1.0")
    assert first == (1 if float(cell) == 1 else 0)
    assert value(shown.metrics, "esms_calls_total", status="of_another_version") == 1


def test_a_set_that_is_evicted_takes_its_series_along() -> None:
    shown = Shown("a", "b")
    totals = shown.totals
    shown.learn({"x": "1"}, {"x": "2"}, {"x": "1", "gone": "y"}, {"x": "other"})
    for row in range(4):
        totals.start("a", row)
        shown.finish("a", row, 350.0)
    shown.finish("b", 0)
    totals.learn({4: {"x": "3"}})
    totals.change_series(SeriesChanges([("a", 4), ("c", 4)], [("a", 1)]))
    assert shown.values() == {("a", "1"): 2, ("a", "other"): 1, ("b", "1"): 1}
    price = "esms_call_price_vnd_total"
    assert shown.values(price) == {("a", "1"): 700, ("a", "other"): 350}
    assert {one.labels["x"] for one in samples(shown.metrics, price)} == {"", "1", "3", "other"}
    assert shown.values("esms_call_duration_seconds_sum")["a", "1"] == 26
    # Its delays stay: they have no labels but the account.
    assert shown.values("esms_call_result_delay_seconds_count")["a",] == 4
    # One of two that are shown alike leaves the series to the other.
    totals.change_series(SeriesChanges([], [("a", 2), ("c", 9)]))
    assert shown.values(price)["a", "1"] == 700
    assert set(totals.label_sets) == {0, 3, 4}
    # And one that returns begins at 0.
    totals.learn({1: {"x": "2"}})
    totals.start("a", 1)
    assert [one.value for one in samples(shown.metrics, price, x="2")] == [0]


def test_accounts_come_and_go() -> None:
    shown = Shown("a", "b")
    shown.learn({"x": "1", "y": "5"}, {"x": "2"})
    shown.finish("a", 0)
    shown.finish("b", 1)
    totals = {key: amount for key, amount, _ in additions("a", 0, ANSWERED, 20.0)}
    ledger = Snapshot({0: {"x": "1", "y": "5"}}, totals, {("a", 0)})
    shown.totals.show({"a"}, ledger)  # not twice
    assert shown.values() == {("a", "1"): 1, ("b", "2"): 1}
    shown.totals.hide("b")
    assert shown.values() == {("a", "1"): 1}
    assert shown.totals.accounts == {"a"}
    assert set(shown.totals.label_sets) == {0}
    # Other labels, of the same sets.
    shown.totals.configure(("y",))
    assert shown.values() == {("a", "5"): 1}
    assert shown.totals.labels(0) == {"y": "5"}
    assert shown.totals.labels(7) == {}


def test_open_messages_keep_their_series_when_the_totals_are_read_again() -> None:
    shown = Shown("a")
    shown.totals.start("a", 0, Kind.MESSAGE)
    for _ in range(2):
        for name in ("esms_messages_total", "esms_message_result_delay_seconds_count"):
            assert {one.value for one in samples(shown.metrics, name)} == {0}
        shown.totals.show({"a"}, Snapshot({}, {}, set()))
    shown.totals.hide("a")
    shown.totals.show({"a"}, Snapshot({}, {}, set()))
    assert samples(shown.metrics, "esms_messages_total") == []
    assert shown.totals.messages("a") is None


def test_the_messages_of_an_account_are_those_of_all_its_label_sets() -> None:
    shown = Shown("a", "b")
    shown.learn({}, {"x": "1"})
    message = Finished(Result.SUCCESS, Status.NONE, receivers=Receivers(100, 69))
    for row, price in ((0, 5.0), (1, None)):
        shown.add(additions("a", row, message, 20.0, price, Kind.MESSAGE))
    assert shown.totals.messages("a") == (200, 138, 5.0)
    assert shown.totals.messages("b") is None
