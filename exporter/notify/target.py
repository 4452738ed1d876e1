"""The interface of targets.

To add a target: a module in this package with a class that implements `Target` and a function that
returns its settings, a line in `App._targets`, and a configuration model in `exporter.config`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from exporter.ledger.outbox import DeliveryAction, Route
from exporter.ledger.types import FinishedCall
from exporter.secrets import mask_phone_numbers

MAX_ANSWER: Final = 200
"""Maximum characters of an answer, as in the ledger."""


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
    healthy: bool = False  # False counts as a failure of the target in its circuit breaker
    retry_after: float | None = None  # seconds to wait, as the target requests
    problem: str = ""  # for the log; contains no secrets

    @property
    def answer(self) -> str:
        """The outcome and the problem, as text."""
        parts = self.outcome.value, mask_phone_numbers(self.problem)
        return ": ".join(filter(None, parts))[:MAX_ANSWER]


class Target(Protocol):
    """A connected target."""

    @property
    def ready(self) -> bool:
        """Whether events can be delivered now; otherwise the target is paused."""

    async def deliver(self, call: FinishedCall) -> Delivery:
        """Make one attempt to deliver an event; never raises for errors of the target."""

    async def close(self) -> None:
        """Close the connection; open attempts fail."""


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """Settings of a target. If they are equal after a reload, the target is not interrupted."""

    route: Route
    config: object  # everything that `connect` depends on
    connect: Callable[[], Target] = field(compare=False)  # called in a running event loop
    timeout: float  # maximum duration of `Target.deliver` in seconds
    max_concurrency: int
    max_attempts: float = math.inf  # failed attempts until an event is given up

    @property
    def name(self) -> str:
        """The label `target`."""
        return self.route.target
