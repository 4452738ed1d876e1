"""Does the exporter keep up, and is it well?"""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.models import dashboard as models

from monitoring.dashboards.frame import Row, account, frame, job_and_instance
from monitoring.dashboards.panels import heat, runbooks, series, single, stacked, timeline
from monitoring.dashboards.promql import (
    age,
    of_account,
    of_exporter,
    quantile,
    rate,
    shared,
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
        "Does the exporter keep up with its calls? Lag, backlog, ledger, sources, resources.",
        (*job_and_instance(), account()),
        (_now(), _backlog(), _ledger(), _sources(), _resources()),
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
                {"calls": f"sum({shared(WATCHED)})"},
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
                rate(LAG, "le"),
            ),
            series(
                "Poll lag by account",
                "The lag that half of the polls, and 99 of 100, had at most.",
                "s",
                {
                    f"{{{{account}}}} {name}": quantile(part, rate(LAG, "account, le"))
                    for name, part in (("half", 0.5), ("99 of 100", 0.99))
                },
            )
            .links(runbooks("EsmsPollLag"))
            .span(12),
            stacked(
                "Watched calls by account",
                "Calls that have not finished.",
                "short",
                {"{{account}}": f"sum by (account) ({shared(WATCHED)})"},
            ),
            stacked(
                "Watched calls by state",
                "Calls that have not finished, by their state at the last answer.",
                "short",
                {"{{state}}": f"sum by (state) ({shared(WATCHED)})"},
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


def _ledger() -> Row:
    return Row(
        "Ledger",
        (
            heat(
                "Duration of commits",
                "Commits a second by the time they took. Results are committed in groups.",
                rate(COMMITS, "le"),
            ),
            series(
                "Commits",
                "The time that half of the commits, and 99 of 100, took at most.",
                "s",
                {
                    name: quantile(part, rate(COMMITS, "le"))
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
                "read when it changes, and the HTTP API when a program calls it.",
                "s",
                {"{{source}}": age(f"max by (source) ({success})")},
            )
            .links(runbooks("EsmsSourceStale"))
            .span(12),
            series(
                "Errors of sources",
                "Readings a minute that failed, or that found what had to be refused.",
                "cpm",
                {"{{source}}": f"60 * {rate(of_exporter('esms_source_errors_total'), 'source')}"},
            )
            .links(runbooks("EsmsSourceFailing"))
            .span(12),
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
        ),
    )
