"""Targets of notifications, whatever their kind.

To add a target: a module beside this one with a class that satisfies `Target` and a function that
returns its settings, a line in `App._targets`, and the model of its section in `exporter.config`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from exporter.ledger.outbox import CallFinished, DeliveryAction, Route


class DeliveryOutcome(StrEnum):
    """The outcome of an attempt: the label `outcome` of `esms_notification_requests_total`."""

    OK = "ok"
    GONE = "gone"
    THROTTLED = "throttled"
    HTTP_ERROR = "http_error"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    TLS = "tls"
    BAD_RESPONSE = "bad_response"
    FORBIDDEN = "forbidden"


class Delivery(NamedTuple):
    """The result of an attempt to deliver an event."""

    outcome: DeliveryOutcome
    action: DeliveryAction
    healthy: bool = False  # whether the target works; if not, its circuit breaker counts that
    retry_after: float | None = None  # seconds for which the target asks not to be sent anything
    problem: str = ""  # for the log; without secrets


class Target(Protocol):
    """A target that is connected."""

    @property
    def ready(self) -> bool:
        """Whether events can be delivered now; if not, the target is paused."""

    async def deliver(self, call: CallFinished) -> Delivery:
        """Try once to deliver an event; never raises because of the target."""

    async def close(self) -> None:
        """Close the connection; attempts under way fail."""


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """A target as it is configured. One that is equal after a reload is not interrupted."""

    route: Route
    config: object  # all that `connect` depends on
    connect: Callable[[], Target] = field(compare=False)  # inside a running loop
    timeout: float  # seconds that `Target.deliver` takes at most
    max_concurrency: int
    max_attempts: float = math.inf  # after which an event is given up

    @property
    def name(self) -> str:
        """The label `target`."""
        return self.route.target
