"""The definition of every metric. To add one, define it here and count it where it happens."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from prometheus_client import (
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.samples import Exemplar

import exporter
from exporter.call_totals import CallTotals, LabelSetTotals
from exporter.ids import Kind
from exporter.ledger.totals import TotalKind
from exporter.metrics.reading import FindExemplar, Reading, Registry, Values
from exporter.polling.stats import AccountStats, Operation
from exporter.source_status import ConfigStatus, SourceStatus

COMMIT_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

_ID_LABEL: Final = "reference_id"
_MAX_EXEMPLAR: Final = 128
"""Characters in the names and values of an exemplar's labels: the limit of OpenMetrics."""

_SURVIVES: Final = "Kept in the ledger: survives restarts."

disable_created_metrics()  # type: ignore[no-untyped-call]


class Catalogue:
    """Every metric, in the order of exposition.

    Most are of the kind `Reading`: other objects count in plain numbers, which each scrape reads.
    """

    def __init__(self) -> None:  # noqa: PLR0915 - a statement per metric
        registry = self.registry = Registry()
        counter = partial(Reading, registry, "counter")
        gauge = partial(Reading, registry, "gauge")
        histogram = partial(Reading, registry, "histogram")
        # Finished calls. The labels of `watch.labels` follow the label `account`.
        self.calls = counter(
            "esms_calls_total{account,result,status}",
            "Finished calls, each counted once, when its result is committed. result: whether "
            f"the carrier delivered the call; status: what the callee did. {_SURVIVES}",
        )
        self.call_duration = histogram(
            "esms_call_duration_seconds{account}",
            f"Duration of answered calls, observed when the result is committed. {_SURVIVES}",
        )
        self.keypresses = counter(
            "esms_call_keypresses_total{account,key}",
            "Finished calls in which the callee pressed a key, by the first key, counted when "
            f"the result is committed. {_SURVIVES}",
        )
        self.result_delay = histogram(
            "esms_call_result_delay_seconds{account}",
            "Time from adding a call to its result, observed when the result is committed. "
            f"{_SURVIVES}",
        )
        self.price = counter(
            "esms_call_price_vnd_total{account}",
            "Prices of finished calls in VND, as reported by the provider's callback, added when "
            "the price and the result are committed. Calls without a callback have no price. "
            f"{_SURVIVES}",
        )
        # Finished messages, likewise.
        self.messages = counter(
            "esms_messages_total{account,result}",
            "Receivers of finished messages, counted once per message, when its result is "
            f"committed. result: whether the receiver got the message. {_SURVIVES}",
        )
        self.message_delay = histogram(
            "esms_message_result_delay_seconds{account}",
            "Time from adding a message to its result, observed when the result is committed. "
            f"{_SURVIVES}",
        )
        self.message_price = counter(
            "esms_message_price_vnd_total{account}",
            "Prices of finished messages in VND, as reported by the provider, added when the "
            f"result is committed. {_SURVIVES}",
        )
        # Accounts and their requests.
        self.watched = gauge(
            "esms_calls_watched{account,state}", "Open calls, by the state in their last answer."
        )
        self.messages_watched = gauge(
            "esms_messages_watched{account,state}",
            "Open messages, by the state in their last answer.",
        )
        self.oldest = gauge(
            "esms_oldest_watched_call_timestamp_seconds{account}",
            "Unix time at which the oldest open call or message was added; 0 if none is open.",
        )
        self.requests = counter(
            "esms_api_requests_total{account,operation,outcome}",
            "Requests to the provider, by outcome. The exporter polls on its own timer; a scrape "
            "sends no request, because the provider limits the rate of requests.",
        )
        self.result_codes = counter(
            "esms_api_result_codes_total{account,operation,code}",
            "Answers of the provider, by result code; codes that are neither documented nor "
            "configured count as `other`.",
        )
        self.odd_values = counter(
            "esms_api_odd_values_total{account,field}",
            "Invalid values in the results of finished calls and messages, by field. A missing "
            "SentResult counts as invalid. Without a valid SentResult, an answered call counts as "
            "success and any other as failure.",
        )
        self.request_duration = histogram(
            "esms_api_request_duration_seconds{account,operation}",
            "Time from sending a request to the complete answer or the failure.",
        )
        self.auth_failures = counter(
            "esms_auth_failures_total{account,code}",
            "Polls that the provider refused because of the credentials, the exporter's address "
            "or the account.",
        )
        self.authorized = gauge(
            "esms_account_authorized{account}",
            "1 if the provider accepts the credentials; 0 after it refused two calls in a row, "
            "and before the first answer.",
        )
        self.lease = gauge(
            "esms_account_lease{account}",
            "1 if this exporter polls the account and exposes its series, 0 if another exporter "
            "on the same ledger does.",
        )
        self.paused_until = gauge(
            "esms_account_paused_until_timestamp_seconds{account}",
            "Unix time at which the account is polled again; 0 if it is not paused.",
        )
        self.last_success = gauge(
            "esms_last_successful_poll_timestamp_seconds{account}",
            "Unix time of the last successful poll; 0 before the first.",
        )
        self.balance = gauge(
            "esms_account_balance_vnd{account}",
            "Balance of the account in VND, from the last successful balance request; no series "
            "before the first.",
        )
        self.balance_timestamp = gauge(
            "esms_account_balance_timestamp_seconds{account}",
            "Unix time of the last successful balance request; 0 before the first.",
        )
        self.balance_warning = gauge(
            "esms_account_balance_warning_vnd{account}",
            "Threshold in VND below which the balance is low: `balance_warning` of the account; no "
            "series if it is not set.",
        )
        self.lag = histogram(
            "esms_poll_lag_seconds{account}",
            "Delay from the time a poll is due to the time its request is sent.",
        )
        self.commit_duration = Histogram(
            "esms_ledger_commit_duration_seconds",
            "Time to commit a batch of results to the ledger.",
            buckets=COMMIT_BUCKETS,
            registry=registry,
        )
        self.ledger_errors = counter(
            "esms_ledger_errors_total", "Failed reads and writes of the ledger."
        )
        self.replicas = gauge(
            "esms_replicas",
            "Running exporters that share the ledger, at this exporter's last heartbeat; 1 if "
            "the ledger is not shared.",
        )
        self.last_heartbeat = gauge(
            "esms_replica_last_heartbeat_timestamp_seconds",
            "Unix time of this exporter's last heartbeat in the ledger; 0 if the ledger is not "
            "shared.",
        )
        self.evictions = counter(
            "esms_replica_evictions_total",
            "Times this exporter stopped polling because it could not renew its leases in time.",
        )
        self.source_last_success = gauge(
            "esms_source_last_success_timestamp_seconds{source}",
            "Unix time at which a source was last read without an error; refused rows of a query "
            "do not count as an error.",
        )
        self.source_errors = counter(
            "esms_source_errors_total{source}",
            "Reads of a source that failed or contained refused calls.",
        )
        self.callbacks = counter(
            "esms_callbacks_total{account,outcome}",
            "Callbacks of the provider, by outcome, counted when they are answered.",
        )
        self.notifications = counter(
            "esms_notifications_total{target,outcome}",
            "Completed notifications of finished calls, by outcome, counted when the outcome is "
            "committed. A notification that is sent again by hand counts again.",
        )
        self.notification_requests = counter(
            "esms_notification_requests_total{target,outcome}",
            "Requests to deliver a notification, by outcome, including retries.",
        )
        self.notification_duration = histogram(
            "esms_notification_request_duration_seconds{target}",
            "Time from sending a notification to the response of the target or the failure.",
        )
        self.notifications_pending = gauge(
            "esms_notifications_pending{target}",
            "Notifications in the ledger that still have to be delivered, updated every 10 s. "
            "All exporters on one ledger expose the same value.",
        )
        self.notifications_oldest = gauge(
            "esms_notifications_oldest_pending_timestamp_seconds{target}",
            "Unix time at which the oldest pending notification was queued: when its call "
            "finished, or when it was sent again by hand; 0 if none is pending.",
        )
        self.canary_success = gauge(
            "esms_canary_success{account,canary}",
            "1 if the last canary call ended as expected, else 0; 0 before the first. Skipped "
            "calls do not count.",
        )
        self.canary_runs = counter(
            "esms_canary_runs_total{account,canary,result}",
            "Canary calls that were due, by result, counted when the result is committed. They "
            "are not counted in esms_calls_total.",
        )
        self.canary_stages = gauge(
            "esms_canary_stage_duration_seconds{account,canary,stage}",
            "Duration of a stage in the last canary call that completed it; 0 before the first.",
        )
        self.canary_last_success = gauge(
            "esms_canary_last_success_timestamp_seconds{account,canary}",
            "Unix time at which a canary call last ended as expected; 0 before the first.",
        )
        self.mqtt_connected = gauge(
            "esms_mqtt_connected", "1 if the exporter is connected to the MQTT broker, else 0."
        )
        self.mqtt_errors = counter(
            "esms_mqtt_connection_errors_total", "Failed connections to the MQTT broker."
        )
        self.mqtt_messages = counter(
            "esms_mqtt_messages_total{kind,outcome}",
            "Messages for Home Assistant, by kind and outcome.",
        )
        build_info = Gauge(
            "esms_exporter_build_info",
            "Constant 1, labelled with the versions of the exporter and of Python.",
            ["version", "python_version"],
            registry=registry,
        )
        build_info.labels(exporter.__version__, platform.python_version()).set(1)
        self.reload_successful = gauge(
            "esms_exporter_config_last_reload_successful",
            "1 if the last loads of the configuration and of the web configuration succeeded, "
            "else 0.",
        )
        self.reload_timestamp = gauge(
            "esms_exporter_config_last_reload_success_timestamp_seconds",
            "Unix time of the last successful load of the configuration.",
        )
        self.log_lines_dropped = counter(
            "esms_exporter_log_lines_dropped_total",
            "Log lines dropped because standard error failed or was not read.",
        )
        self.tls_failures = Counter(
            "esms_exporter_tls_handshake_failures_total",
            "Failed TLS handshakes with clients of the exporter's web server, by reason.",
            ["reason"],
            registry=registry,
        )
        self.tls_expiry = Gauge(
            "esms_exporter_tls_certificate_expiry_timestamp_seconds",
            "Unix time at which the first certificate in the web server's chain expires; 0 "
            "without TLS.",
            registry=registry,
        )
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

    def read_accounts(self, accounts: Callable[[], Iterable[tuple[str, AccountStats]]]) -> None:
        """Read the metrics of accounts and their requests.

        `accounts` returns the exposed accounts; the series of other accounts disappear.
        """

        def read(metric: Reading, values: Callable[[AccountStats], Values]) -> None:
            metric.read_each(accounts, values)

        read(self.watched, lambda stats: stats.open[Kind.CALL])
        read(self.messages_watched, lambda s: s.open[Kind.MESSAGE] if s.polls_messages else None)
        read(self.oldest, lambda stats: stats.oldest_open)
        read(self.requests, lambda stats: {to: n.outcomes for to, n in stats.requests.items()})
        read(self.result_codes, lambda stats: {to: n.codes for to, n in stats.requests.items()})
        read(self.request_duration, lambda s: {to: n.durations for to, n in s.requests.items()})
        read(self.odd_values, lambda stats: stats.odd_values)
        read(self.auth_failures, _refusals)
        read(self.authorized, lambda stats: bool(stats.authorized))
        read(self.paused_until, lambda stats: stats.paused_until)
        read(self.last_success, lambda stats: stats.last_success)
        read(self.balance, lambda stats: stats.balance and stats.balance.vnd)
        read(self.balance_timestamp, _balance_timestamp)
        read(self.balance_warning, lambda stats: stats.balance_warning)
        read(self.lag, lambda stats: stats.lags)

    def read_calls(self, totals: CallTotals) -> None:
        """Read the metrics of finished calls, with the labels of `watch.labels`."""

        def read(
            metric: Reading,
            total: TotalKind,
            shown: Callable[[], Iterable[tuple[object, LabelSetTotals]]] = totals.shown,
        ) -> None:
            metric.read_each(shown, lambda item: item.counts[total], lambda: totals.names)

        read(self.calls, TotalKind.CALLS)
        read(self.keypresses, TotalKind.KEYPRESSES)
        read(self.price, TotalKind.PRICE)
        read(self.messages, TotalKind.MESSAGES, totals.shown_messages)
        read(self.message_price, TotalKind.MESSAGE_PRICE, totals.shown_messages)
        self.call_duration.read_each(
            totals.shown, lambda item: item.durations, lambda: totals.names
        )
        self.result_delay.read_from(lambda: totals.delays[TotalKind.DELAY])
        self.message_delay.read_from(lambda: totals.delays[TotalKind.MESSAGE_DELAY])
        for metric, total in (
            (self.calls, TotalKind.CALLS),
            (self.call_duration, TotalKind.DURATION),
            (self.result_delay, TotalKind.DELAY),
            (self.messages, TotalKind.MESSAGES),
            (self.message_delay, TotalKind.MESSAGE_DELAY),
        ):
            metric.read_exemplars(partial(_exemplars, totals, total))

    def read_status(
        self, sources: Callable[[], Iterable[SourceStatus]], config: ConfigStatus
    ) -> None:
        self.source_last_success.read_from(lambda: {s.name: s.last_success for s in sources()})
        self.source_errors.read_from(lambda: {source.name: source.errors for source in sources()})
        self.reload_successful.read_from(lambda: not config.problems)
        self.reload_timestamp.read_from(lambda: config.loaded_at)


def _exemplars(totals: CallTotals, total: TotalKind) -> FindExemplar | None:
    def find(labels: tuple[str, ...]) -> Exemplar | None:
        call = totals.newest(total, labels)
        if call is None or len(_ID_LABEL) + len(call.reference_id) > _MAX_EXEMPLAR:
            return None
        return Exemplar({_ID_LABEL: call.reference_id}, call.value, call.finished_at)

    return find if totals.exemplars else None


def _refusals(stats: AccountStats) -> Values:
    refusals = dict[str, int]()
    for kind in Kind if stats.polls_messages else (Kind.CALL,):
        for code, number in stats.polls_of(kind).refusals.items():
            refusals[code] = refusals.get(code, 0) + number
    return refusals


def _balance_timestamp(stats: AccountStats) -> float | None:
    if Operation.GET_BALANCE not in stats.requests:
        return None
    return stats.balance.known_at if stats.balance else 0.0
