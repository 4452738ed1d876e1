"""The metrics of accounts and of sources: read from their plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from exporter.metrics.catalogue import AUTH_CODES, Catalogue
from exporter.metrics.readings import Rows, V
from exporter.polling.stats import AccountStats, Operation
from exporter.source_status import ConfigStatus, SourceStatus


def read_accounts(
    catalogue: Catalogue, accounts: Callable[[], Iterable[tuple[str, AccountStats]]]
) -> None:
    """Have the metrics of accounts, and of the requests for them, read at each scrape.

    Args:
        catalogue: the metrics.
        accounts: returns the accounts that are exposed, by name: their series go with them.
    """

    def each(read: Callable[[AccountStats], Rows[V]]) -> Callable[[], Rows[V]]:
        return partial(_rows, accounts, read)

    catalogue.watched.read_from(
        each(lambda stats: (((state.value,), calls) for state, calls in stats.open_calls.items()))
    )
    catalogue.oldest.read_from(each(lambda stats: [((), stats.oldest_open)]))
    catalogue.requests.read_from(each(_requests))
    catalogue.result_codes.read_from(each(_result_codes))
    catalogue.request_duration.read_from(
        each(lambda stats: (((to.value,), made.durations) for to, made in stats.requests.items()))
    )
    catalogue.odd_values.read_from(
        each(lambda stats: (((field.value,), odd) for field, odd in stats.odd_values.items()))
    )
    catalogue.auth_failures.read_from(
        each(lambda stats: (((code,), stats.polls.codes[code]) for code in AUTH_CODES))
    )
    catalogue.authorized.read_from(each(lambda stats: [((), bool(stats.authorized))]))
    catalogue.paused_until.read_from(each(lambda stats: [((), stats.paused_until)]))
    catalogue.last_success.read_from(each(lambda stats: [((), stats.last_success)]))
    catalogue.balance.read_from(
        each(lambda stats: [((), stats.balance.vnd)] if stats.balance else [])
    )
    catalogue.balance_timestamp.read_from(each(_balance_timestamp))
    catalogue.balance_warning.read_from(
        each(lambda stats: [] if stats.balance_warning is None else [((), stats.balance_warning)])
    )
    catalogue.lag.read_from(each(lambda stats: [((), stats.lags)]))


def _rows(
    accounts: Callable[[], Iterable[tuple[str, AccountStats]]],
    read: Callable[[AccountStats], Rows[V]],
) -> Rows[V]:
    for name, stats in accounts():
        for labels, value in read(stats):
            yield (name, *labels), value


def _requests(stats: AccountStats) -> Rows[float]:
    for operation, made in stats.requests.items():
        for outcome, number in made.outcomes.items():
            yield (operation.value, outcome.value), number


def _result_codes(stats: AccountStats) -> Rows[float]:
    for operation, made in stats.requests.items():
        for code, number in made.codes.items():
            yield (operation.value, code), number


def _balance_timestamp(stats: AccountStats) -> Rows[float]:
    if Operation.GET_BALANCE in stats.requests:
        yield (), stats.balance.known_at if stats.balance else 0.0


def read_status(
    catalogue: Catalogue, sources: Callable[[], Iterable[SourceStatus]], config: ConfigStatus
) -> None:
    """Have the metrics of sources and of the configuration read at each scrape.

    Args:
        catalogue: the metrics.
        sources: returns the sources that are configured.
        config: the files of the configuration.
    """
    catalogue.source_last_success.read_from(
        lambda: (((source.name,), source.last_success) for source in sources())
    )
    catalogue.source_errors.read_from(
        lambda: (((source.name,), source.errors) for source in sources())
    )
    catalogue.reload_successful.read_from(lambda: [((), not config.problems)])
    catalogue.reload_timestamp.read_from(lambda: [((), config.loaded_at)])
