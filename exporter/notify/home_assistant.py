"""The target Home Assistant: publishes events to an MQTT broker."""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from exporter.config.targets import HomeAssistantConfig
from exporter.errors import BrokerAwayError, BrokerError
from exporter.home_assistant.integration import Publisher
from exporter.ledger.outbox import DeliveryAction, Route
from exporter.ledger.types import FinishedCall
from exporter.notify.events import home_assistant_event
from exporter.notify.target import Delivery, DeliveryOutcome, TargetSettings

NAME: Final = "Home Assistant"
"""Name of the target; not allowed for webhooks."""

GIVE_UP_AFTER: Final = 86_400.0
"""Seconds after the finish of a call until its event expires, here and at the broker."""


def home_assistant(config: HomeAssistantConfig, publisher: Publisher) -> TargetSettings:
    """Return the settings of the target.

    With one event at a time, it is known which event breaks the connection; after the third time,
    the event is given up.
    """
    return TargetSettings(
        Route(NAME, GIVE_UP_AFTER, config.accounts),
        config,
        partial(HomeAssistantEvents, publisher),
        timeout=30.0,
        max_concurrency=1,
        max_attempts=3,
    )


class HomeAssistantEvents:
    """Publishes events; see `exporter.notify.target.Target`."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    @property
    def ready(self) -> bool:
        """Whether the broker is connected."""
        return self._publisher.ready

    async def deliver(self, call: FinishedCall) -> Delivery:
        try:
            left = max(1, round(call.finished_at + GIVE_UP_AFTER - time.time()))
            await self._publisher.publish_event(call.account, home_assistant_event(call), left)
        except BrokerError as error:
            away = isinstance(error, BrokerAwayError)
            action = DeliveryAction.RELEASE if away else DeliveryAction.RETRY
            return Delivery(DeliveryOutcome.CONNECTION, action, problem=str(error))
        return Delivery(DeliveryOutcome.OK, DeliveryAction.DONE, healthy=True)

    async def close(self) -> None:
        """Do nothing: the publisher keeps its connection."""
