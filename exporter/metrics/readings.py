"""Connect the metrics of accounts, calls and sources to the objects that hold their values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from exporter.call_totals import CallTotals, LabelSetTotals
from exporter.calls import ENDINGS
from exporter.metrics.catalogue import AUTH_CODES, Catalogue
from exporter.metrics.reading import Rows, V
from exporter.polling.stats import AccountStats, Operation
from exporter.source_status import ConfigStatus, SourceStatus

_ENDINGS: Final = {f"{result}/{status}": (result.value, status.value) for result, status in ENDINGS}


def read_accounts(
    metrics: Catalogue, accounts: Callable[[], Iterable[tuple[str, AccountStats]]]
) -> None:
    """Read the metrics of accounts and their requests.

    `accounts` returns the exposed accounts; the series of other accounts disappear.
    """

    def each(read: Callable[[AccountStats], Rows[V]]) -> Callable[[], Rows[V]]:
        return lambda: (
            ((name, *labels), value) for name, stats in accounts() for labels, value in read(stats)
        )

    metrics.watched.read_from(
        each(lambda stats: (((state.value,), calls) for state, calls in stats.open_calls.items()))
    )
    metrics.oldest.read_from(each(lambda stats: [((), stats.oldest_open)]))
    metrics.requests.read_from(
        each(
            lambda stats: (
                ((operation.value, outcome.value), number)
                for operation, made in stats.requests.items()
                for outcome, number in made.outcomes.items()
            )
        )
    )
    metrics.result_codes.read_from(
        each(
            lambda stats: (
                ((operation.value, code), number)
                for operation, made in stats.requests.items()
                for code, number in made.codes.items()
            )
        )
    )
    metrics.request_duration.read_from(
        each(lambda stats: (((to.value,), made.durations) for to, made in stats.requests.items()))
    )
    metrics.odd_values.read_from(
        each(lambda stats: (((field.value,), odd) for field, odd in stats.odd_values.items()))
    )
    metrics.auth_failures.read_from(
        each(lambda stats: (((code,), stats.polls.codes[code]) for code in AUTH_CODES))
    )
    metrics.authorized.read_from(each(lambda stats: [((), bool(stats.authorized))]))
    metrics.paused_until.read_from(each(lambda stats: [((), stats.paused_until)]))
    metrics.last_success.read_from(each(lambda stats: [((), stats.last_success)]))
    metrics.balance.read_from(
        each(lambda stats: [((), stats.balance.vnd)] if stats.balance else [])
    )
    metrics.balance_timestamp.read_from(
        each(
            lambda stats: (
                [((), stats.balance.known_at if stats.balance else 0.0)]
                if Operation.GET_BALANCE in stats.requests
                else []
            )
        )
    )
    metrics.balance_warning.read_from(
        each(lambda stats: [] if stats.balance_warning is None else [((), stats.balance_warning)])
    )
    metrics.lag.read_from(each(lambda stats: [((), stats.lags)]))


def read_calls(metrics: Catalogue, totals: CallTotals) -> None:
    """Read the metrics of finished calls, with user labels."""

    def each(read: Callable[[LabelSetTotals], Rows[V]]) -> Callable[[], Rows[V]]:
        return lambda: (
            ((account, *labels, *of_user), value)
            for account, of_user, shown in totals.shown()
            for labels, value in read(shown)
        )

    def names() -> tuple[str, ...]:
        return totals.names

    metrics.calls.read_from(
        each(
            lambda shown: (
                (_ENDINGS.get(ending) or tuple(ending.split("/")), number)
                for ending, number in shown.calls.items()
            )
        ),
        names,
    )
    metrics.call_duration.read_from(each(lambda shown: [((), shown.durations)]), names)
    metrics.keypresses.read_from(
        each(lambda shown: (((key,), number) for key, number in shown.keypresses.items())), names
    )
    metrics.price.read_from(each(lambda shown: [((), shown.price)]), names)
    metrics.result_delay.read_from(
        lambda: (((account,), delays) for account, delays in totals.delays.items())
    )


def read_status(
    metrics: Catalogue, sources: Callable[[], Iterable[SourceStatus]], config: ConfigStatus
) -> None:
    """Read the metrics of sources and of the configuration."""
    metrics.source_last_success.read_from(
        lambda: (((source.name,), source.last_success) for source in sources())
    )
    metrics.source_errors.read_from(
        lambda: (((source.name,), source.errors) for source in sources())
    )
    metrics.reload_successful.read_from(lambda: [((), not config.problems)])
    metrics.reload_timestamp.read_from(lambda: [((), config.loaded_at)])
