"""The integration with Home Assistant: applies its configuration."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import TYPE_CHECKING, Final

from exporter.account import Account
from exporter.config import HomeAssistantConfig
from exporter.errors import BrokerAwayError
from exporter.home_assistant.payloads import Topics, device, state
from exporter.metrics.catalogue import Catalogue
from exporter.tracker import CallTracker

if TYPE_CHECKING:
    from exporter.home_assistant.publisher import MqttMetrics, Publisher

_GOODBYE: Final = 5.0
"""Seconds to clear retained messages of the previous configuration."""


_MIN_INTERVAL: Final = 1.0
"""Minimum seconds between updates."""

_PER_ACCOUNT: Final = 0.01
"""Seconds between updates per account: with 1,000 accounts, updates use 1 % of a core."""


class ExposedAccounts:
    """The accounts that a configuration exposes.

    Args:
        config: the configuration.
        accounts: the accounts that this exporter polls: live mapping, shared by reference.
        configured: the names of all configured accounts: live set, shared by reference.
        calls: the tracker of calls.

    Attributes:
        topics: the MQTT topics.
    """

    def __init__(
        self,
        config: HomeAssistantConfig,
        accounts: Mapping[str, Account],
        configured: Collection[str],
        calls: CallTracker,
    ) -> None:
        self.topics = Topics(config.discovery_prefix, config.topic_prefix)
        self._only = config.accounts
        self._accounts = accounts
        self._configured = configured
        self._calls = calls

    @property
    def interval(self) -> float:
        """Seconds between updates of `messages`."""
        return max(_MIN_INTERVAL, _PER_ACCOUNT * len(self._accounts))

    def left_to_others(self) -> set[str]:
        """Return the topics of accounts that other exporters may publish."""
        standby = [name for name in self._configured if name not in self._accounts]
        return {
            topic(name) for name in standby for topic in (self.topics.device, self.topics.state)
        }

    async def messages(self) -> Mapping[str, bytes]:
        """Return the messages to retain for the accounts that this exporter polls, by topic."""
        now, wanted = time.time(), dict[str, bytes]()
        for name, account in list(self._accounts.items()):
            if self._only is None or name in self._only:
                balance = account.stats.balance
                wanted[self.topics.device(name)] = device(
                    self.topics, name, with_balance=balance is not None
                )
                recent = self._calls.recent_results.recent(name, now)
                wanted[self.topics.state(name)] = state(
                    account.status,
                    recent,
                    len(account.poller.calls),
                    balance and balance.vnd,
                )
                await asyncio.sleep(0)  # do not block polls and scrapes
        return wanted


class HomeAssistant:
    """Publishes accounts and events if a broker is configured.

    Args:
        accounts: live mapping, shared by reference.
        calls: the tracker of calls.
        metrics: counts messages.
        spawn: starts a background task.
        on_ready: called whenever events can be published again.
    """

    def __init__(
        self,
        accounts: Mapping[str, Account],
        calls: CallTracker,
        metrics: Catalogue,
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
        on_ready: Callable[[], None],
    ) -> None:
        self._accounts = accounts
        self._calls = calls
        self._metrics = metrics
        self._spawn = spawn
        self._on_ready = on_ready
        self._configured: set[str] = set()
        self._config: HomeAssistantConfig | None = None
        self._publisher: Publisher | None = None
        self._mqtt: MqttMetrics | None = None
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
        if self._publisher:
            moved = config is None or _location(config) != _location(self._config)
            self._publisher.stop(clear_retained=moved)
        self._config = config
        self._publisher = None
        if config is None:
            self._metrics.remove_mqtt()
            self._mqtt = None
        else:
            # The MQTT library is optional: import it only if a broker is configured.
            from exporter.home_assistant.publisher import MqttMetrics, Publisher  # noqa: PLC0415

            exposed = ExposedAccounts(config, self._accounts, self._configured, self._calls)
            self._mqtt = self._mqtt or MqttMetrics(self._metrics)
            self._publisher = Publisher(config, exposed, self._mqtt, self._on_ready)
        self._running = self._spawn(_replace(self._running, self._publisher))

    @property
    def ready(self) -> bool:
        """Whether events can be published now."""
        return self._publisher is not None and self._publisher.ready

    async def publish_event(self, account: str, payload: bytes) -> None:
        """Publish an event; see `Publisher.publish_event`."""
        if self._publisher is None:
            raise BrokerAwayError("no MQTT broker is configured")
        await self._publisher.publish_event(account, payload)

    async def stop(self, timeout: float, *, others: bool = False) -> None:
        """Publish the last states, and the availability `offline` unless others are online.

        Args:
            timeout: seconds until the task is cancelled.
            others: whether other exporters keep publishing.
        """
        if self._publisher:
            self._publisher.stop(clear_retained=False, others=others)
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
