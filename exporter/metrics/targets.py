"""The metrics of those who are told of finished calls."""

from __future__ import annotations

from enum import StrEnum

from exporter.metrics.catalogue import Catalogue


class PostOutcome(StrEnum):
    """What came of a request to a target of `notify`: the label `outcome`."""

    OK = "ok"
    GONE = "gone"
    THROTTLED = "throttled"
    HTTP_ERROR = "http_error"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    TLS = "tls"
    BAD_RESPONSE = "bad_response"
    FORBIDDEN = "forbidden"


class TargetMetrics:
    """The series of one target of `notify`, each looked up once."""

    def __init__(self, catalogue: Catalogue, target: str) -> None:
        self.delivered = catalogue.notifications.labels(target, "delivered")
        self.gave_up = catalogue.notifications.labels(target, "gave_up")
        self.requests = {
            outcome: catalogue.notification_requests.labels(target, outcome.value)
            for outcome in PostOutcome
        }
        self.duration = catalogue.notification_duration.labels(target)
        self.pending = catalogue.notifications_pending.labels(target)
        self.oldest = catalogue.notifications_oldest.labels(target)


def remove_target(catalogue: Catalogue, target: str) -> None:
    """Drop a target's series."""
    for family in catalogue.families():
        family.remove("target", target)
