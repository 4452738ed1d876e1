"""Home Assistant's events: a message to an MQTT broker for each event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

from exporter.config.home_assistant import HomeAssistantConfig
from exporter.errors import BrokerAwayError, BrokerError
from exporter.ledger.outbox import CallFinished, Route
from exporter.notify.events import home_assistant_event
from exporter.notify.target import Delivery, DeliveryAction, DeliveryOutcome

NAME: Final = "Home Assistant"
"""Of the target; no webhook can have it."""

GIVE_UP_AFTER: Final = 86_400.0
"""Seconds for which events wait for a broker that is away."""


class EventPublisher(Protocol):
    """The connection to the broker, which states of accounts share."""

    @property
    def ready(self) -> bool:
        """Whether events can be published now."""

    async def publish_event(self, account: str, payload: bytes) -> None:
        """Publish an event; raises `BrokerAwayError` if it was not sent, or `BrokerError`."""


@dataclass(frozen=True, slots=True)
class HomeAssistantTarget:
    """Home Assistant's events, as the configuration describes them, and the connection for them.

    One event at a time: it is to blame where the connection breaks, and is given up when that
    happens for the third time.
    """

    config: HomeAssistantConfig
    publisher: EventPublisher
    timeout: ClassVar = 30.0
    max_concurrency: ClassVar = 1
    max_attempts: ClassVar = 3.0

    @property
    def route(self) -> Route:
        """See `exporter.notify.target.Target`; so are all others here."""
        return Route(NAME, GIVE_UP_AFTER, self.config.accounts)

    @property
    def ready(self) -> bool:
        """See `Connection`."""
        return self.publisher.ready

    def connect(self) -> HomeAssistantTarget:
        """See `Target`."""
        return self

    async def deliver(self, call: CallFinished) -> Delivery:
        """See `Connection`."""
        try:
            await self.publisher.publish_event(call.account, home_assistant_event(call))
        except BrokerAwayError as error:
            action = DeliveryAction.RELEASE
            return Delivery(DeliveryOutcome.CONNECTION, action, problem=str(error))
        except BrokerError as error:
            action = DeliveryAction.RETRY
            return Delivery(DeliveryOutcome.CONNECTION, action, problem=str(error))
        return Delivery(DeliveryOutcome.OK, DeliveryAction.DONE, healthy=True)

    async def close(self) -> None:
        """See `Connection`."""
