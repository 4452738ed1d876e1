"""What a target of notifications has to offer, and what it answers.

To add a target: a module beside this one with a class that satisfies `Target`, a module in
`exporter.config` with the model of its section, and a line in `App.targets`.
"""

from __future__ import annotations

from enum import Enum, StrEnum, auto
from typing import NamedTuple, Protocol

from exporter.ledger.outbox import CallFinished, Route


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


class DeliveryAction(Enum):
    """What happens to a notification after an attempt."""

    DONE = auto()
    GIVE_UP = auto()
    RETRY = auto()  # after a back-off
    RELEASE = auto()  # it was not tried: again at once


class Delivery(NamedTuple):
    """The result of an attempt to deliver an event.

    Attributes:
        outcome: for the metrics.
        action: what happens to the notification.
        healthy: whether the target works; if not, the circuit breaker counts a failure.
        retry_after: seconds for which the target asks not to be sent anything, if it does.
        problem: for the log; without secrets.
    """

    outcome: DeliveryOutcome
    action: DeliveryAction
    healthy: bool = False
    retry_after: float | None = None
    problem: str = ""


class Connection(Protocol):
    """An open connection to a target."""

    @property
    def ready(self) -> bool:
        """Whether events can be delivered now; if not, the target is paused."""

    async def deliver(self, call: CallFinished) -> Delivery:
        """Try once to deliver an event, within `Target.timeout`; never raises for the target."""

    async def close(self) -> None:
        """Close the connection; attempts under way fail."""


class Target(Protocol):
    """Where finished calls are notified to. Compared by value: an equal one survives a reload."""

    @property
    def route(self) -> Route:
        """The target's name, and which calls it is notified of."""

    @property
    def timeout(self) -> float:
        """Seconds that an attempt may take."""

    @property
    def max_concurrency(self) -> int:
        """Attempts under way at a time, at most."""

    @property
    def max_attempts(self) -> float:
        """Attempts after which an event is given up."""

    def connect(self) -> Connection:
        """Make a connection, inside a running loop."""
