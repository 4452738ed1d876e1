"""The metrics of finished calls, read from their totals; some of their labels are the user's."""

from __future__ import annotations

from functools import partial
from typing import Final

from exporter.call_totals import CallTotals
from exporter.calls import ENDINGS
from exporter.metrics.catalogue import Catalogue
from exporter.metrics.readings import Rows
from exporter.polling.stats import Distribution

_ENDINGS: Final = {f"{result}/{status}": (result.value, status.value) for result, status in ENDINGS}


def read_calls(catalogue: Catalogue, totals: CallTotals) -> None:
    """Have the metrics of finished calls read from these totals at each scrape."""

    def names() -> tuple[str, ...]:
        return totals.names

    catalogue.calls.read_from(partial(_calls, totals), names)
    catalogue.call_duration.read_from(partial(_durations, totals), names)
    catalogue.keypresses.read_from(partial(_keypresses, totals), names)
    catalogue.result_delay.read_from(partial(_delays, totals))
    catalogue.price.read_from(partial(_prices, totals), names)


def _calls(totals: CallTotals) -> Rows[float]:
    for account, labels, shown in totals.shown():
        for ending, number in shown.calls.items():
            result, status = _ENDINGS.get(ending) or ending.split("/")
            yield (account, result, status, *labels), number


def _durations(totals: CallTotals) -> Rows[Distribution]:
    for account, labels, shown in totals.shown():
        yield (account, *labels), shown.durations


def _keypresses(totals: CallTotals) -> Rows[float]:
    for account, labels, shown in totals.shown():
        for key, number in shown.keypresses.items():
            yield (account, key, *labels), number


def _delays(totals: CallTotals) -> Rows[Distribution]:
    for account, distribution in totals.delays.items():
        yield (account,), distribution


def _prices(totals: CallTotals) -> Rows[float]:
    for account, labels, shown in totals.shown():
        yield (account, *labels), shown.price
