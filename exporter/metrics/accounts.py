"""The metrics of one account and of its polls."""

from __future__ import annotations

from exporter.calls import CallbackOutcome
from exporter.metrics.catalogue import (
    AUTH_CODES,
    GET_SEND_STATUS,
    Catalogue,
)
from exporter.polling.stats import AccountStats


class AccountMetrics:
    """The series of one account and of its polls; all begin at 0.

    Args:
        catalogue: where they are.
        account: its name.
        stats: what is counted; shown by `collect`.
    """

    def __init__(self, catalogue: Catalogue, account: str, stats: AccountStats) -> None:
        self._catalogue = catalogue
        self._account = account
        self._stats = stats
        self.callbacks = {
            outcome: catalogue.callbacks.labels(account, outcome.value)
            for outcome in CallbackOutcome
        }
        self.collect()

    def collect(self) -> None:
        """Bring the series up to date."""
        catalogue, account, stats = self._catalogue, self._account, self._stats
        for outcome, number in stats.polls.outcomes.items():
            catalogue.requests.labels(account, GET_SEND_STATUS, outcome.value).value = float(number)
        for code, number in stats.polls.codes.items():
            catalogue.result_codes.labels(account, GET_SEND_STATUS, code).value = float(number)
        for code in AUTH_CODES:
            catalogue.auth_failures.labels(account, code).value = float(stats.polls.codes[code])
        for field, number in stats.odd_values.items():
            catalogue.odd_values.labels(account, field.value).value = float(number)
        for state, number in stats.open_calls.items():
            catalogue.watched.labels(account, state.value).value = float(number)
        for buckets, distribution in (
            (catalogue.request_duration.labels(account, GET_SEND_STATUS), stats.polls.durations),
            (catalogue.lag.labels(account), stats.lags),
        ):
            buckets.counts[:] = map(float, distribution.counts)
            buckets.sum = distribution.sum
        catalogue.authorized.labels(account).value = float(bool(stats.authorized))
        catalogue.paused_until.labels(account).value = stats.paused_until
        catalogue.last_success.labels(account).value = stats.last_success
        catalogue.oldest.labels(account).value = stats.oldest_open
