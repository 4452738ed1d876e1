"""Dashboard of the exporter itself."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.models import dashboard as models

from monitoring.dashboards.frame import Row, account, frame, job_and_instance
from monitoring.dashboards.home_assistant import home_assistant
from monitoring.dashboards.notifications import notifications
from monitoring.dashboards.panels import heat, runbooks, series, single, stacked, timeline
from monitoring.dashboards.promql import (
    age,
    distribution,
    held,
    of_account,
    of_exporter,
    quantile,
    rate,
)

LAG: Final = of_account("esms_poll_lag_seconds_bucket")
COMMITS: Final = of_exporter("esms_ledger_commit_duration_seconds_bucket")
WATCHED: Final = of_account("esms_calls_watched")
OLDEST: Final = of_account("esms_oldest_watched_call_timestamp_seconds")
RELOADED: Final = of_exporter("esms_exporter_config_last_reload_successful")


def exporter() -> models.Dashboard:
    """Return the dashboard for operators of the exporter."""
    return frame(
        "esms-exporter",
        "eSMS / Exporter",
        "The exporter itself: lag, backlog, replicas, ledger, sources, notifications, resources.",
        (*job_and_instance(), account()),
        (
            _now(),
            _backlog(),
            _replicas(),
            _ledger(),
            _sources(),
            _tls(),
            notifications(),
            home_assistant(),
            _resources(),
        ),
    )


def _now() -> Row:
    return Row(
        "Now",
        (
            single(
                "Up",
                "Exporters that Prometheus scraped successfully.",
                "short",
                {"up": f"sum({of_exporter('up')})"},
                none="none",
            ),
            single(
                "Down",
                "Exporters that Prometheus could not scrape.",
                "short",
                {"down": f"count({of_exporter('up')} == 0)"},
                none="0",
            ).links(runbooks("EsmsExporterDown", "EsmsMetricsAbsent")),
            single(
                "Open calls",
                "Open calls of all accounts.",
                "short",
                {"calls": held(WATCHED)},
            ),
            single(
                "Oldest open call",
                "Time since the oldest open call or message was added.",
                "s",
                {"oldest": f"max({age(OLDEST)})"},
                none="none",
            ),
            single(
                "Ledger errors",
                "Failed reads and writes of the ledger in the time range.",
                "short",
                {"errors": f"sum(increase({of_exporter('esms_ledger_errors_total')}[$__range]))"},
            ),
            single(
                "Uptime",
                "Time since the last start of an exporter.",
                "s",
                {"uptime": f"time() - max({of_exporter('process_start_time_seconds')})"},
            ),
            timeline(
                "Configuration",
                "Whether the last load of the configuration and of the web configuration, if "
                "there is one, succeeded. After a failure, the previous one stays in use; the "
                "log shows the reason.",
                {"{{instance}}": f"min by (instance) ({RELOADED})"},
                {"0": ("failed", "red"), "1": ("loaded", "green")},
            ).links(runbooks("EsmsReloadFailed")),
            series(
                "Versions",
                "Number of exporters by version.",
                "short",
                {
                    "{{version}}, Python {{python_version}}": "count by (version, python_version) "
                    f"({of_exporter('esms_exporter_build_info')})"
                },
            )
            .height(6)
            .span(12),
        ),
    )


def _backlog() -> Row:
    return Row(
        "Lag and backlog",
        (
            heat(
                "Poll lag",
                "Polls per second by the delay from the time a poll is due to the time its "
                "request is sent. It grows when the exporter falls behind.",
                distribution(LAG),
            ),
            series(
                "Poll lag by account",
                "Median and 99th percentile of the poll lag.",
                "s",
                {
                    f"{{{{account}}}} {name}": quantile(part, LAG, "account")
                    for name, part in (("p50", 0.5), ("p99", 0.99))
                },
            )
            .links(runbooks("EsmsPollLag"))
            .span(12),
            stacked(
                "Open calls by account",
                "Open calls, by account.",
                "short",
                {"{{account}}": held(WATCHED, "account")},
            ),
            stacked(
                "Open calls by state",
                "Open calls, by the state in their last answer.",
                "short",
                {"{{state}}": held(WATCHED, "state")},
            ),
            series(
                "Age of the oldest open call",
                "Time since the oldest open call or message was added. Those older than "
                "`polling.give_up_after` end as unknown.",
                "s",
                {"{{account}}": f"max by (account) ({age(OLDEST)})"},
            ).links(runbooks("EsmsCallsStuck")),
        ),
    )


def _replicas() -> Row:
    def each(metric: str) -> str:
        return f"max by (instance) ({of_exporter(metric)})"

    def a_minute(metric: str) -> str:
        return f"60 * {rate(of_exporter(metric), 'instance')}"

    return Row(
        "Replicas: exporters that share a ledger",
        (
            series(
                "Live replicas",
                "Running exporters that share the ledger, at the last heartbeat of each; 1 if "
                "the ledger is not shared.",
                "short",
                {"{{instance}}": each("esms_replicas")},
            ).links(runbooks("EsmsExporterDown")),
            stacked(
                "Open calls by instance",
                "Open calls, by the exporter that polls them.",
                "short",
                {"{{instance}}": held(WATCHED, "instance")},
            ),
            series(
                "Age of heartbeats",
                "Time since the last heartbeat of each exporter; no data if the ledger is not "
                "shared.",
                "s",
                {"{{instance}}": age(each("esms_replica_last_heartbeat_timestamp_seconds"))},
            ).links(runbooks("EsmsReplicaCutOff")),
            stacked(
                "Accounts by instance",
                "Accounts that the exporter polls.",
                "short",
                {"{{instance}}": f"sum by (instance) ({of_exporter('esms_account_lease')})"},
            ).span(12),
            series(
                "Evictions",
                "Times per minute that an exporter stopped polling because it could not renew "
                "its leases in time: it was too slow, or could not reach the ledger.",
                "cpm",
                {"{{instance}}": a_minute("esms_replica_evictions_total")},
            )
            .links(runbooks("EsmsReplicaEvicted"))
            .span(12),
        ),
    )


def _ledger() -> Row:
    return Row(
        "Ledger",
        (
            heat(
                "Duration of commits",
                "Commits per second by the time to commit a batch of results to the ledger.",
                distribution(COMMITS),
            ),
            series(
                "Commit duration percentiles",
                "Median and 99th percentile of the time to commit a batch of results.",
                "s",
                {name: quantile(part, COMMITS) for name, part in (("p50", 0.5), ("p99", 0.99))},
            ).span(6),
            series(
                "Ledger errors by instance",
                "Failed reads and writes of the ledger per minute. Results wait in memory until "
                "they can be written, and are not counted before.",
                "cpm",
                {
                    "{{instance}}": "60 * "
                    + rate(of_exporter("esms_ledger_errors_total"), "instance")
                },
            )
            .links(runbooks("EsmsLedgerErrors", "EsmsNotReady"))
            .span(6),
        ),
    )


def _sources() -> Row:
    success = of_exporter("esms_source_last_success_timestamp_seconds")
    return Row(
        "Sources of calls",
        (
            series(
                "Time since the last success of a source",
                "Time since a source was last read without an error. The configuration is read "
                "when it changes; the HTTP API counts requests. Each exporter has its own "
                "sources.",
                "s",
                {"{{instance}} {{source}}": age(f"max by (instance, source) ({success})")},
            )
            .links(runbooks("EsmsSourceStale"))
            .span(12),
            series(
                "Errors of sources",
                "Reads of a source per minute that failed or contained refused calls.",
                "cpm",
                {
                    "{{instance}} {{source}}": "60 * "
                    + rate(of_exporter("esms_source_errors_total"), "instance, source")
                },
            )
            .links(runbooks("EsmsSourceFailing"))
            .span(12),
        ),
    )


def _tls() -> Row:
    expiry = of_exporter("esms_exporter_tls_certificate_expiry_timestamp_seconds")
    failures = of_exporter("esms_exporter_tls_handshake_failures_total")
    return Row(
        "TLS of the exporter's web server",
        (
            series(
                "Certificate expires in",
                "Time until the first certificate in the web server's chain expires; no data "
                "without TLS.",
                "s",
                {"{{instance}}": f"min by (instance) ({expiry} > 0) - time()"},
            ).span(12),
            series(
                "Failed TLS handshakes",
                "Failed TLS handshakes with clients per minute, by reason. The log shows the "
                "address of the client.",
                "cpm",
                {"{{instance}} {{reason}}": "60 * " + rate(failures, "instance, reason")},
            ).span(12),
        ),
    )


def _resources() -> Row:
    def of_process(name: str) -> str:
        return of_exporter(f"process_{name}")

    return Row(
        "Resources",
        (
            series(
                "CPU",
                "CPU cores in use. Polling and metrics share one core.",
                "short",
                {"{{instance}}": rate(of_process("cpu_seconds_total"), "instance")},
            ).span(6),
            series(
                "Memory",
                "Resident memory.",
                "bytes",
                {"{{instance}}": f"sum by (instance) ({of_process('resident_memory_bytes')})"},
            ).span(6),
            series(
                "Open files and sockets",
                "Open file descriptors, and the limit of the process.",
                "short",
                {
                    "{{instance}}": f"sum by (instance) ({of_process('open_fds')})",
                    "{{instance}} limit": f"sum by (instance) ({of_process('max_fds')})",
                },
            ).span(6),
            series(
                "Duration of scrapes",
                "Time that Prometheus needed to scrape the exporter.",
                "s",
                {"{{instance}}": f"max by (instance) ({of_exporter('scrape_duration_seconds')})"},
            ).span(6),
            series(
                "Dropped log lines",
                "Log lines dropped per second because standard error failed or was not read: "
                "the disk is full, or its reader is blocked.",
                "short",
                {
                    "{{instance}}": rate(
                        of_exporter("esms_exporter_log_lines_dropped_total"), "instance"
                    )
                },
            ).span(24),
        ),
    )
