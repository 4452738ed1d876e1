"""Every metric, in one place: a new one is an entry here and the line that counts it."""

from __future__ import annotations

import platform
from contextlib import suppress
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
from prometheus_client.metrics import MetricWrapperBase

import exporter
from exporter.esms.codes import CODES, Outcome
from exporter.metrics.reading import Reading, Registry
from exporter.polling.stats import REQUEST_BUCKETS, Distribution

COMMIT_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

AUTH_CODES: Final = tuple(code for code, outcome in CODES.items() if outcome is Outcome.AUTH)


_SURVIVES: Final = "Kept in the ledger: survives restarts."

disable_created_metrics()  # type: ignore[no-untyped-call]


class Catalogue:
    """Every metric, in the order in which they are exposed; those of finished calls come first.

    What an object counts for the metrics alone is a metric of prometheus-client. What is counted
    in plain numbers elsewhere is a `Reading`, and is read at each scrape.

    Attributes:
        registry: what is exposed.
    """

    def __init__(self) -> None:  # noqa: PLR0915 - one for each metric
        registry = self.registry = Registry()
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        read_counter = partial(Reading[float], registry, "counter")
        read_gauge = partial(Reading[float], registry, "gauge")
        read_histogram = partial(Reading[Distribution], registry, "histogram")
        # Finished calls. After these labels come the user's: the names in `watch.labels`.
        self.calls = read_counter(
            "esms_calls_total",
            "Finished calls, counted once when the result is committed. result: did the carrier "
            f"deliver the call; status: what the callee did. {_SURVIVES}",
            ["account", "result", "status"],
        )
        self.call_duration = read_histogram(
            "esms_call_duration_seconds",
            f"Duration of answered calls, observed when the result is committed. {_SURVIVES}",
            ["account"],
        )
        self.keypresses = read_counter(
            "esms_call_keypresses_total",
            "Finished calls whose callee pressed a key, by the first key, counted when the result "
            f"is committed. {_SURVIVES}",
            ["account", "key"],
        )
        self.result_delay = read_histogram(
            "esms_call_result_delay_seconds",
            "Time from the moment a call was watched to its result, observed when the result is "
            f"committed. {_SURVIVES}",
            ["account"],
        )
        self.price = read_counter(
            "esms_call_price_vnd_total",
            "Prices of finished calls, in VND, as the provider's callback told them, added when "
            f"both are committed. {_SURVIVES}",
            ["account"],
        )
        # Accounts and the requests for them.
        self.watched = read_gauge(
            "esms_calls_watched",
            "Watched calls that have not finished, by their state at the last answer.",
            ["account", "state"],
        )
        self.oldest = read_gauge(
            "esms_oldest_watched_call_timestamp_seconds",
            "When the oldest call that has not finished was first watched; 0 where there is none.",
            ["account"],
        )
        self.requests = read_counter(
            "esms_api_requests_total",
            "Requests to the provider, by what they came to, counted when the answer is read. "
            "The exporter polls at its own pace, because the provider limits requests and a result "
            "has to be fetched once: a scrape never costs a request.",
            ["account", "operation", "outcome"],
        )
        self.result_codes = read_counter(
            "esms_api_result_codes_total",
            "Answers of the provider by result code, counted when the answer is read; codes that "
            "are not documented are `other`.",
            ["account", "operation", "code"],
        )
        self.odd_values = read_counter(
            "esms_api_odd_values_total",
            "Fields of finished calls, in answers and callbacks, whose value cannot be used, or a "
            "SentResult that is missing: an answered call then counts as success, another as "
            "failure.",
            ["account", "field"],
        )
        self.request_duration = read_histogram(
            "esms_api_request_duration_seconds",
            "Time from sending a request to the end of its answer or its failure.",
            ["account", "operation"],
        )
        self.auth_failures = read_counter(
            "esms_auth_failures_total",
            "Answers to polls that refused the credentials, the caller's address or the account.",
            ["account", "code"],
        )
        self.authorized = read_gauge(
            "esms_account_authorized",
            "1 when the provider has accepted the credentials, 0 when it refuses two calls "
            "in a row; 0 before that is known.",
            ["account"],
        )
        self.lease = read_gauge(
            "esms_account_lease",
            "1 where this exporter polls the account and exposes its series, 0 where another one "
            "that shares the ledger does.",
            ["account"],
        )
        self.paused_until = read_gauge(
            "esms_account_paused_until_timestamp_seconds",
            "When the account may be polled again; 0 when it is not paused.",
            ["account"],
        )
        self.last_success = read_gauge(
            "esms_last_successful_poll_timestamp_seconds",
            "When the provider last gave a good answer; 0 before the first.",
            ["account"],
        )
        self.balance = read_gauge(
            "esms_account_balance_vnd",
            "Balance of the account in VND, as the provider last told it; no series before it did.",
            ["account"],
        )
        self.balance_timestamp = read_gauge(
            "esms_account_balance_timestamp_seconds",
            "When the provider last told the account's balance; 0 before it did.",
            ["account"],
        )
        self.balance_warning = read_gauge(
            "esms_account_balance_warning_vnd",
            "The balance in VND below which it is low: `balance_warning` of the account; no series "
            "where there is none.",
            ["account"],
        )
        self.lag = read_histogram(
            "esms_poll_lag_seconds",
            "Time from the moment a call was due to the moment its request was sent.",
            ["account"],
        )
        self.commit_duration = histogram(
            "esms_ledger_commit_duration_seconds",
            "Time that the ledger took to commit a group of results.",
            buckets=COMMIT_BUCKETS,
        )
        self.ledger_errors = read_counter(
            "esms_ledger_errors_total", "Reads and writes of the ledger that failed."
        )
        self.replicas = read_gauge(
            "esms_replicas",
            "Exporters that share the ledger and are alive, as this one last saw; 1 where the "
            "ledger is not shared.",
        )
        self.last_heartbeat = read_gauge(
            "esms_replica_last_heartbeat_timestamp_seconds",
            "When this exporter last told the others that it is alive; 0 where the ledger is not "
            "shared.",
        )
        self.evictions = read_counter(
            "esms_replica_evictions_total",
            "Times that this exporter could not renew its leases in time and stopped polling.",
        )
        self.source_last_success = read_gauge(
            "esms_source_last_success_timestamp_seconds",
            "When a watch source was last read as it should be; rows of a query that had to be "
            "refused do not matter.",
            ["source"],
        )
        self.source_errors = read_counter(
            "esms_source_errors_total",
            "Readings of a watch source that failed, or that found what had to be refused.",
            ["source"],
        )
        self.callbacks = counter(
            "esms_callbacks_total",
            "Callbacks of the provider, by what was made of them, counted when they are answered.",
            ["account", "outcome"],
        )
        self.notifications = counter(
            "esms_notifications_total",
            "Notifications of finished calls that are done with, by how they ended, counted once "
            "that is durable.",
            ["target", "outcome"],
        )
        self.notification_requests = counter(
            "esms_notification_requests_total",
            "Requests that carried a notification, by what they came to. A notification may take "
            "many.",
            ["target", "outcome"],
        )
        self.notification_duration = histogram(
            "esms_notification_request_duration_seconds",
            "Time from sending a notification to the target's answer or the failure.",
            ["target"],
            buckets=REQUEST_BUCKETS,
        )
        self.notifications_pending = gauge(
            "esms_notifications_pending",
            "Notifications in the ledger that are still to be sent, counted every 10 s. Exporters "
            "that share the ledger all show the same.",
            ["target"],
        )
        self.notifications_oldest = gauge(
            "esms_notifications_oldest_pending_timestamp_seconds",
            "When the call finished whose notification has been pending longest; 0 where none is.",
            ["target"],
        )
        self.canary_success = read_gauge(
            "esms_canary_success",
            "1 where the last canary call ended as expected, else 0; 0 before the first. Due times "
            "at which none was placed do not count.",
            ["account", "canary"],
        )
        self.canary_runs = read_counter(
            "esms_canary_runs_total",
            "Canary calls that were due, by what became of them, counted at their end. They are "
            "not counted in esms_calls_total.",
            ["account", "canary", "result"],
        )
        self.canary_stages = read_gauge(
            "esms_canary_stage_duration_seconds",
            "How long a stage of the last canary call that went through it took; 0 before the "
            "first.",
            ["account", "canary", "stage"],
        )
        self.canary_last_success = read_gauge(
            "esms_canary_last_success_timestamp_seconds",
            "When a canary call last ended as expected; 0 before the first.",
            ["account", "canary"],
        )
        self.mqtt_connected = read_gauge(
            "esms_mqtt_connected", "1 while the MQTT broker is connected, else 0."
        )
        self.mqtt_errors = read_counter(
            "esms_mqtt_connection_errors_total", "Connections to the MQTT broker that failed."
        )
        self.mqtt_messages = counter(
            "esms_mqtt_messages_total",
            "Messages for Home Assistant, by what they are about and what became of them.",
            ["kind", "outcome"],
        )
        self.build_info = gauge(
            "esms_exporter_build_info",
            "Constant 1, labelled with the versions of the exporter and of Python.",
            ["version", "python_version"],
        )
        self.reload_successful = read_gauge(
            "esms_exporter_config_last_reload_successful",
            "1 where the last load of the configuration, and of the web configuration if there is "
            "one, succeeded, else 0.",
        )
        self.reload_timestamp = read_gauge(
            "esms_exporter_config_last_reload_success_timestamp_seconds",
            "When the configuration was last loaded with success.",
        )
        self.log_lines_dropped = read_counter(
            "esms_exporter_log_lines_dropped_total",
            "Log lines that could not be written, because standard error failed or was not read.",
        )
        self.tls_failures = counter(
            "esms_exporter_tls_handshake_failures_total",
            "TLS handshakes with clients of the exporter's web server that failed, by reason.",
            ["reason"],
        )
        self.tls_expiry = gauge(
            "esms_exporter_tls_certificate_expiry_timestamp_seconds",
            "When the certificate of the exporter's web server, or the first one of its chain, "
            "expires; 0 without TLS.",
        )
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self.build_info.labels(exporter.__version__, platform.python_version()).set(1)

    def remove_mqtt(self) -> None:
        """Remove the series of the MQTT broker: none is configured."""
        self.mqtt_connected.read_from(tuple)
        self.mqtt_errors.read_from(tuple)
        self.mqtt_messages.clear()

    def remove(self, label: str, value: str) -> None:
        """Remove every series that was counted with a label of this value.

        Those that are read from plain state go with that state.
        """
        for metric in vars(self).values():
            if isinstance(metric, MetricWrapperBase):
                with suppress(ValueError):  # it has no such label
                    metric.remove_by_labels({label: value})
