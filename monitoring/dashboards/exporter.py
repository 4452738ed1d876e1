"""Does the exporter keep up, and is it well?"""

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
    """Return the dashboard for whoever runs the exporter."""
    return frame(
        "esms-exporter",
        "eSMS / Exporter",
        "Does the exporter keep up with its calls? Lag, backlog, replicas, ledger, sources, "
        "resources.",
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
                "Scraped",
                "Exporters that Prometheus could scrape last time.",
                "short",
                {"up": f"sum({of_exporter('up')})"},
                none="none",
            ),
            single(
                "Down",
                "Exporters that Prometheus could not scrape last time.",
                "short",
                {"down": f"count({of_exporter('up')} == 0)"},
                none="0",
            ).links(runbooks("EsmsExporterDown", "EsmsMetricsAbsent")),
            single(
                "Watched calls",
                "Calls that have not finished.",
                "short",
                {"calls": held(WATCHED)},
            ),
            single(
                "Oldest call",
                "How long the oldest call that has not finished has been watched.",
                "s",
                {"oldest": f"max({age(OLDEST)})"},
                none="none",
            ),
            single(
                "Ledger errors",
                "Reads and writes of the ledger that failed in the time that is shown.",
                "short",
                {"errors": f"sum(increase({of_exporter('esms_ledger_errors_total')}[$__range]))"},
            ),
            single(
                "Uptime",
                "Time since the exporter that started last did so.",
                "s",
                {"uptime": f"time() - max({of_exporter('process_start_time_seconds')})"},
            ),
            timeline(
                "Configuration",
                "Whether the last load of the configuration, and of the web configuration, "
                "succeeded. Where it did not, the one before is in force; the log tells why.",
                {"{{instance}}": f"min by (instance) ({RELOADED})"},
                {"0": ("failed", "red"), "1": ("loaded", "green")},
            ).links(runbooks("EsmsReloadFailed")),
            series(
                "Versions",
                "Exporters by version.",
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
                "Polls a second by the time from the moment a call was due to the moment its "
                "request was sent. An exporter that falls behind shows here first.",
                distribution(LAG),
            ),
            series(
                "Poll lag by account",
                "The lag that half of the polls, and 99 of 100, had at most.",
                "s",
                {
                    f"{{{{account}}}} {name}": quantile(part, LAG, "account")
                    for name, part in (("half", 0.5), ("99 of 100", 0.99))
                },
            )
            .links(runbooks("EsmsPollLag"))
            .span(12),
            stacked(
                "Watched calls by account",
                "Calls that have not finished.",
                "short",
                {"{{account}}": held(WATCHED, "account")},
            ),
            stacked(
                "Watched calls by state",
                "Calls that have not finished, by their state at the last answer.",
                "short",
                {"{{state}}": held(WATCHED, "state")},
            ),
            series(
                "Age of the oldest call",
                "How long the oldest call that has not finished has been watched. What is older "
                "than `polling.give_up_after` is finished as unknown.",
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
                "Exporters that share the ledger and are alive, as each last saw; 1 where the "
                "ledger is not shared.",
                "short",
                {"{{instance}}": each("esms_replicas")},
            ).links(runbooks("EsmsExporterDown")),
            stacked(
                "Watched calls by instance",
                "Calls that have not finished, by the exporter that polls them.",
                "short",
                {"{{instance}}": held(WATCHED, "instance")},
            ),
            series(
                "Age of heartbeats",
                "How long ago an exporter last told the others that it is alive; nothing where the "
                "ledger is not shared.",
                "s",
                {"{{instance}}": age(each("esms_replica_last_heartbeat_timestamp_seconds"))},
            ).links(runbooks("EsmsReplicaCutOff")),
            stacked(
                "Accounts by instance",
                "Accounts that an exporter polls: those whose lease it holds.",
                "short",
                {"{{instance}}": f"sum by (instance) ({of_exporter('esms_account_lease')})"},
            ).span(12),
            series(
                "Evictions",
                "Times a minute that an exporter could not renew its leases in time and stopped "
                "polling: it was too slow, or cut off from the ledger.",
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
                "Commits a second by the time they took. Results are committed in groups.",
                distribution(COMMITS),
            ),
            series(
                "Commits",
                "The time that half of the commits, and 99 of 100, took at most.",
                "s",
                {
                    name: quantile(part, COMMITS)
                    for name, part in (("half", 0.5), ("99 of 100", 0.99))
                },
            ).span(6),
            series(
                "Ledger errors by instance",
                "Reads and writes a minute that failed. What was observed is written once it can "
                "be; until then calls do not finish.",
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
                "Time since a source was read",
                "How long ago a watch source was last read as it should be. The configuration is "
                "read when it changes, and the HTTP API when a program calls it. Each exporter "
                "reads its own.",
                "s",
                {"{{instance}} {{source}}": age(f"max by (instance, source) ({success})")},
            )
            .links(runbooks("EsmsSourceStale"))
            .span(12),
            series(
                "Errors of sources",
                "Readings a minute that failed, or that found what had to be refused.",
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
                "Time until the certificate of the web server, or the first one of its chain, "
                "expires; nothing without TLS.",
                "s",
                {"{{instance}}": f"min by (instance) ({expiry} > 0) - time()"},
            ).span(12),
            series(
                "Failed TLS handshakes",
                "Handshakes with clients a minute that failed, by reason. The log names the peer.",
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
                "Cores in use. Polling and metrics share one.",
                "short",
                {"{{instance}}": rate(of_process("cpu_seconds_total"), "instance")},
            ).span(6),
            series(
                "Memory",
                "Memory in use (resident).",
                "bytes",
                {"{{instance}}": f"sum by (instance) ({of_process('resident_memory_bytes')})"},
            ).span(6),
            series(
                "Open files and sockets",
                "In use, and the limit that the system sets.",
                "short",
                {
                    "{{instance}}": f"sum by (instance) ({of_process('open_fds')})",
                    "{{instance}} limit": f"sum by (instance) ({of_process('max_fds')})",
                },
            ).span(6),
            series(
                "Duration of scrapes",
                "Time that Prometheus took to scrape the exporter.",
                "s",
                {"{{instance}}": f"max by (instance) ({of_exporter('scrape_duration_seconds')})"},
            ).span(6),
            series(
                "Dropped log lines",
                "Log lines per second that could not be written: the disk behind standard error "
                "is full, or the pipe behind it is not read.",
                "short",
                {
                    "{{instance}}": rate(
                        of_exporter("esms_exporter_log_lines_dropped_total"), "instance"
                    )
                },
            ).span(24),
        ),
    )
