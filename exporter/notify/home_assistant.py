"""The target Home Assistant: publishes events to an MQTT broker."""

from __future__ import annotations

from functools import partial
from typing import Final

from exporter.config.targets import HomeAssistantConfig
from exporter.errors import BrokerAwayError, BrokerError
from exporter.home_assistant.integration import HomeAssistant
from exporter.ledger.outbox import CallFinished, DeliveryAction, Route
from exporter.notify.events import home_assistant_event
from exporter.notify.target import Delivery, DeliveryOutcome, TargetSettings

NAME: Final = "Home Assistant"
"""Name of the target; not allowed for webhooks."""

_GIVE_UP_AFTER: Final = 86_400.0
"""Seconds until events for a disconnected broker expire."""


def home_assistant(config: HomeAssistantConfig, publisher: HomeAssistant) -> TargetSettings:
    """Return the settings of the target.

    With one event at a time, it is known which event breaks the connection; after the third time,
    the event is given up.
    """
    return TargetSettings(
        Route(NAME, _GIVE_UP_AFTER, config.accounts),
        config,
        partial(HomeAssistantEvents, publisher),
        timeout=30.0,
        max_concurrency=1,
        max_attempts=3,
    )


class HomeAssistantEvents:
    """Publishes events; see `exporter.notify.target.Target`."""

    def __init__(self, publisher: HomeAssistant) -> None:
        self._publisher = publisher

    @property
    def ready(self) -> bool:
        """Whether the broker is connected."""
        return self._publisher.ready

    async def deliver(self, call: CallFinished) -> Delivery:
        """Publish an event."""
        action, problem = DeliveryAction.RETRY, ""
        try:
            await self._publisher.publish_event(call.account, home_assistant_event(call))
        except BrokerAwayError as error:
            action, problem = DeliveryAction.RELEASE, str(error)
        except BrokerError as error:
            problem = str(error)
        else:
            return Delivery(DeliveryOutcome.OK, DeliveryAction.DONE, healthy=True)
        return Delivery(DeliveryOutcome.CONNECTION, action, problem=problem)

    async def close(self) -> None:
        """Do nothing: the connection belongs to `HomeAssistant`."""
