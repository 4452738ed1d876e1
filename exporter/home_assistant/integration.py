"""The integration with Home Assistant: applies its configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Final

from exporter.account import Account
from exporter.config import HomeAssistantConfig
from exporter.home_assistant.payloads import MqttStats
from exporter.home_assistant.publisher import ExposedAccounts, Publisher
from exporter.metrics.catalogue import Catalogue
from exporter.metrics.reading import Reading, Values
from exporter.tracker import CallTracker

_GOODBYE: Final = 5.0
"""Seconds to clear retained messages of the previous configuration."""


def read_mqtt(metrics: Catalogue, stats: Callable[[], MqttStats | None]) -> None:
    """Read the metrics of the broker; `stats` returns None if no broker is configured."""

    def read(metric: Reading, values: Callable[[MqttStats], Values]) -> None:
        metric.read_from(lambda: None if (now := stats()) is None else values(now))

    read(metrics.mqtt_connected, lambda stats: stats.connected)
    read(metrics.mqtt_errors, lambda stats: stats.connection_errors)
    read(metrics.mqtt_messages, lambda stats: stats.messages)


class HomeAssistant:
    """Runs the publisher of the configured broker, if there is one.

    Args:
        accounts: live mapping, shared by reference.
        calls: the tracker of calls.
        spawn: starts a background task.
        on_ready: called whenever events can be published again.

    Attributes:
        publisher: None if no broker is configured.
        stats: its statistics; kept when the broker changes.
    """

    def __init__(
        self,
        accounts: Mapping[str, Account],
        calls: CallTracker,
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
        on_ready: Callable[[], None],
    ) -> None:
        self._accounts = accounts
        self._calls = calls
        self._spawn = spawn
        self._on_ready = on_ready
        self.stats: MqttStats | None = None
        self._configured: set[str] = set()
        self._config: HomeAssistantConfig | None = None
        self.publisher: Publisher | None = None
        self._running: asyncio.Task[None] | None = None

    def configure(self, config: HomeAssistantConfig | None, accounts: Collection[str]) -> None:
        """Change the broker, unless it is the same; None for no broker.

        Args:
            config: configuration of the broker.
            accounts: all configured accounts, including those that other exporters poll.
        """
        self._configured.clear()
        self._configured.update(accounts)
        if config == self._config:
            return
        if self.publisher:
            moved = config is None or _location(config) != _location(self._config)
            self.publisher.stop(clear_retained=moved)
        self._config = config
        if config is None:
            self.publisher = self.stats = None
        else:
            exposed = ExposedAccounts(config, self._accounts, self._configured, self._calls)
            self.stats = self.stats or MqttStats()
            self.publisher = Publisher(config, exposed, self.stats, self._on_ready)
        self._running = self._spawn(_replace(self._running, self.publisher))

    async def stop(self, timeout: float, *, others: bool = False) -> None:
        """Publish the last states, and the availability `offline` unless others are online.

        Args:
            timeout: seconds until the task is cancelled.
            others: whether other exporters keep publishing.
        """
        if self.publisher:
            self.publisher.stop(clear_retained=False, others=others)
        await _end(self._running, timeout)


def _location(config: HomeAssistantConfig | None) -> tuple[object, ...]:
    """Return the settings that determine where messages are retained."""
    return (config.url, config.discovery_prefix, config.topic_prefix) if config else ()


async def _replace(old: asyncio.Task[None] | None, new: Publisher | None) -> None:
    await _end(old, _GOODBYE)
    if new:
        await new.run()


async def _end(running: asyncio.Task[None] | None, timeout: float) -> None:
    if running:
        await asyncio.wait([running], timeout=timeout)
        running.cancel()
        await asyncio.wait([running])
