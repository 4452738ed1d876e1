"""Are those told of finished calls who are to be?"""

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
    """Return the row on the targets of `notify`."""
    return Row(
        "Notifications",
        (
            series(
                "Notifications done with",
                "Notifications a minute that were delivered, or given up because their time was "
                "over or the target answered that it is gone.",
                "cpm",
                {"{{target}} {{outcome}}": f"60 * {rate(DONE, 'target, outcome')}"},
            )
            .links(runbooks("EsmsNotificationsLost"))
            .span(6),
            series(
                "Notifications pending",
                "Notifications in the ledger that are still to be sent.",
                "short",
                {"{{target}}": f"max by (target) ({PENDING})"},
            ).span(6),
            series(
                "Age of the oldest pending notification",
                "How long ago the call finished that a target has not been told of for longest.",
                "s",
                {"{{target}}": f"max by (target) ({age(OLDEST)})"},
            )
            .links(runbooks("EsmsNotificationsLate"))
            .span(6),
            series(
                "Requests to targets",
                "Requests a minute that carried a notification, by what they came to.",
                "cpm",
                {"{{target}} {{outcome}}": f"60 * {rate(REQUESTS, 'target, outcome')}"},
            ).span(6),
            series(
                "Duration of requests to targets",
                "The time that half of the requests, and 99 of 100, took at most.",
                "s",
                {
                    f"{{{{target}}}} {name}": quantile(part, DURATION, "target")
                    for name, part in (("half", 0.5), ("99 of 100", 0.99))
                },
            ).span(24),
        ),
    )
