"""Panels of notifications."""

from __future__ import annotations

from typing import Final

from monitoring.dashboards.frame import Row
from monitoring.dashboards.panels import runbooks, series
from monitoring.dashboards.promql import age, of_exporter, quantile, rate

PENDING: Final = of_exporter("esms_notifications_pending")
OLDEST: Final = of_exporter("esms_notifications_oldest_pending_timestamp_seconds")
DONE: Final = of_exporter("esms_notifications_total")
REQUESTS: Final = of_exporter("esms_notification_requests_total")
DURATION: Final = of_exporter("esms_notification_request_duration_seconds_bucket")


def notifications() -> Row:
    """Return the row of the targets of `notify`."""
    return Row(
        "Notifications",
        (
            series(
                "Notifications",
                "Completed notifications of finished calls per minute, by outcome: delivered, or "
                "given up because they expired or the target answered with status 410.",
                "cpm",
                {"{{target}} {{outcome}}": f"60 * {rate(DONE, 'target, outcome')}"},
            )
            .links(runbooks("EsmsNotificationsLost"))
            .span(6),
            series(
                "Pending notifications",
                "Notifications in the ledger that still have to be delivered.",
                "short",
                {"{{target}}": f"max by (target) ({PENDING})"},
            ).span(6),
            series(
                "Age of the oldest pending notification",
                "Time since the call of the oldest pending notification finished.",
                "s",
                {"{{target}}": f"max by (target) ({age(OLDEST)})"},
            )
            .links(runbooks("EsmsNotificationsLate"))
            .span(6),
            series(
                "Requests to targets",
                "Requests per minute that carried a notification, by outcome, including retries.",
                "cpm",
                {"{{target}} {{outcome}}": f"60 * {rate(REQUESTS, 'target, outcome')}"},
            ).span(6),
            series(
                "Duration of requests to targets",
                "Median and 99th percentile of the time from sending a notification to the "
                "target's response or the failure.",
                "s",
                {
                    f"{{{{target}}}} {name}": quantile(part, DURATION, "target")
                    for name, part in (("p50", 0.5), ("p99", 0.99))
                },
            ).span(24),
        ),
    )
