"""The exemplars of finished calls, as parsers of OpenMetrics read them."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Exemplar, Timestamp

from exporter.call_totals import CallTotals
from exporter.calls import Finished, Receivers, Result, Status
from exporter.ids import Kind, ReferenceId
from exporter.ledger.totals import CountedCall, TotalKey, additions
from exporter.ledger.types import SeriesChanges, Snapshot
from exporter.metrics.catalogue import Catalogue
from exporter.metrics.exposition import Exposition

ANSWERED = Finished(Result.SUCCESS, Status.ANSWERED, 13.0)
FAILED = Finished(Result.FAILURE, Status.FAILED)
OTP, REMINDER = 1, 2
AT = Timestamp(1, 500_000_000)
NOTHING = Snapshot({OTP: {"campaign": "otp"}, REMINDER: {"campaign": "reminder"}}, {}, set())


class Exposed:
    """The totals of two accounts, and what a scrape shows of them."""

    def __init__(self) -> None:
        self.totals = CallTotals(("campaign",))
        self.totals.use_exemplars(enabled=True)
        self.totals.show({"main", "b"}, NOTHING)
        self.totals.learn(NOTHING.label_sets)
        self.counted = defaultdict[TotalKey, float](float)
        metrics = Catalogue()
        metrics.read_calls(self.totals)
        self._exposition = Exposition(metrics.registry)

    def finish(
        self,
        name: str,
        row: int = OTP,
        account: str = "main",
        found: Finished = ANSWERED,
        kind: Kind = Kind.CALL,
    ) -> None:
        added, newest = dict[TotalKey, float](), dict[TotalKey, CountedCall]()
        for key, amount, value in additions(account, row, found, 20.0, None, kind):
            added[key] = amount
            self.counted[key] += amount
            if value is not None:
                newest[key] = CountedCall(ReferenceId(name), value, 1.5)
        self.totals.add(added.items())
        self.totals.keep_newest(newest)

    def scrape(self) -> dict[tuple[str, ...], Exemplar]:
        """Return the exemplars by the name of a sample and the values of its labels."""
        assert " # " not in asyncio.run(self._exposition.render(openmetrics=False)).decode()
        text = asyncio.run(self._exposition.render(openmetrics=True)).decode()
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.exemplar
            for family in text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
            for sample in family.samples
            if sample.exemplar
        }

    def ids(self, name: str = "esms_calls_total") -> dict[tuple[str, ...], str]:
        """Return the ids in the exemplars of a metric by the values of its labels."""
        return {
            of[1:]: exemplar.labels["reference_id"]
            for of, exemplar in self.scrape().items()
            if of[0] == name
        }


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("call-1", True),
        ("R" * 116, True),  # 128 characters with the name of the label
        ("R" * 117, False),
        ("ạ" * 116, True),  # characters count, not bytes
        ("ạ" * 117, False),
        ("\U0001f4de" * 116, True),
        ('a"b"', True),  # the parser fails on an odd number of quotes, which are in no id
        ("a\\b\\n\\", True),
        ("a\nb", True),
        ('{a="b"} # {} 1', True),
    ],
)
def test_an_id_is_read_as_it_was_written_or_left_out(name: str, *, fits: bool) -> None:
    exposed = Exposed()
    assert exposed.scrape() == {}
    exposed.finish(name)
    labels = {"reference_id": name}
    expected = {
        ("esms_calls_total", "main", "otp", "success", "answered"): Exemplar(labels, 1.0, AT),
        ("esms_call_duration_seconds_bucket", "main", "otp", "15.0"): Exemplar(labels, 13.0, AT),
        ("esms_call_result_delay_seconds_bucket", "main", "30.0"): Exemplar(labels, 20.0, AT),
    }
    assert exposed.scrape() == (expected if fits else {})


def test_messages() -> None:
    exposed = Exposed()
    found = Finished(Result.FAILURE, Status.NONE, receivers=Receivers(2, 1))
    exposed.finish("sent", found=found, kind=Kind.MESSAGE)
    labels = {"reference_id": "sent"}
    assert exposed.scrape() == {
        ("esms_messages_total", "main", "otp", "success"): Exemplar(labels, 2.0, AT),
        ("esms_messages_total", "main", "otp", "failure"): Exemplar(labels, 1.0, AT),
        ("esms_message_result_delay_seconds_bucket", "main", "30.0"): Exemplar(labels, 20.0, AT),
    }


def test_a_series_has_the_newest_call_for_as_long_as_it_is_shown() -> None:
    exposed = Exposed()
    totals = exposed.totals
    answered, failed = ("success", "answered"), ("failure", "failed")
    exposed.finish("first")
    exposed.finish("second")
    exposed.finish("third", found=FAILED)
    exposed.finish("fourth", REMINDER)
    exposed.finish("fifth", account="b")
    exposed.finish("elsewhere", account="c")
    shown = {
        ("main", "otp", *answered): "second",
        ("main", "otp", *failed): "third",
        ("main", "reminder", *answered): "fourth",
        ("b", "otp", *answered): "fifth",
    }
    delays = {("main", "30.0"): "fourth", ("b", "30.0"): "fifth"}
    assert exposed.ids() == shown
    assert exposed.ids("esms_call_result_delay_seconds_bucket") == delays
    # The totals are read again; another exporter has evicted a label set.
    left = {key: number for key, number in exposed.counted.items() if key.labels != REMINDER}
    totals.show({"main"}, NOTHING._replace(totals=left))
    totals.start("main", REMINDER)
    del shown["main", "reminder", *answered]
    assert exposed.ids() == shown
    # This exporter evicts one, which returns.
    totals.change_series(SeriesChanges([], [("main", OTP)]))
    totals.learn(NOTHING.label_sets)
    totals.start("main", OTP)
    del shown["main", "otp", *answered], shown["main", "otp", *failed]
    assert exposed.ids() == shown
    assert exposed.ids("esms_call_result_delay_seconds_bucket") == delays
    # An account stops.
    totals.hide("b")
    totals.show({"b"}, NOTHING)
    assert exposed.ids() == {}
    assert exposed.ids("esms_call_result_delay_seconds_bucket") == {("main", "30.0"): "fourth"}


def test_exemplars_are_turned_off_and_on() -> None:
    exposed = Exposed()
    exposed.finish("before")
    assert exposed.scrape()
    exposed.totals.use_exemplars(enabled=False)
    assert exposed.scrape() == {}
    exposed.finish("meanwhile")
    exposed.totals.use_exemplars(enabled=True)
    assert exposed.scrape() == {}
    exposed.finish("after")
    assert set(exposed.ids().values()) == {"after"}
    # Other labels are shown.
    exposed.totals.configure(("team",))
    assert exposed.ids() == {}
