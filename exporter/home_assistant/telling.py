"""Telling Home Assistant, as the configuration says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Final

from exporter.account import Account
from exporter.balances import Balance
from exporter.config import Config, HomeAssistantConfig
from exporter.home_assistant.accounts import ShownAccounts
from exporter.home_assistant.events import Events, MqttMetrics, Waiting
from exporter.metrics.catalogue import Catalogue
from exporter.replicas.replica import Replica
from exporter.tracker import CallTracker

if TYPE_CHECKING:
    from exporter.home_assistant.publisher import Publisher

_GOODBYE: Final = 5.0
"""Seconds that an old configuration is given to take back what it has told."""


class HomeAssistant:
    """Tells Home Assistant of the accounts, where the configuration has a broker for it.

    Args:
        accounts: those that are polled; whoever changes them has it seen here.
        calls: what is watched, and what has become of it.
        metrics: where messages are counted.
        spawn: runs a coroutine in the background, until it is cancelled.
        balances: those that the provider has told.
        replica: returns this exporter as one of those that share a ledger, if it does.
    """

    def __init__(
        self,
        accounts: Mapping[str, Account],
        calls: CallTracker,
        metrics: Catalogue,
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
        balances: Mapping[str, Balance],
        replica: Callable[[], Replica | None],
    ) -> None:
        self._accounts = accounts
        self._calls = calls
        self._metrics = metrics
        self._spawn = spawn
        self._replica = replica
        self._balances = balances
        self._events: Events | None = None
        self._config: HomeAssistantConfig | None = None
        self._shown: ShownAccounts | None = None
        self._publisher: Publisher | None = None
        self._running: asyncio.Task[None] | None = None

    def configure(self, config: Config) -> None:
        """Go over to another broker, or to none; nothing happens where nothing has changed."""
        wish = config.home_assistant
        if wish == self._config:
            return
        if self._publisher:
            moved = wish is None or _place(wish) != _place(self._config)
            self._publisher.stop(take_back=moved)
        self._config = wish
        self._calls.tell_finished = self._finished if wish else None
        self._shown = self._publisher = None
        if wish is None:
            self._events = None
            self._metrics.remove_mqtt()
        else:
            # What it needs is installed where a broker is configured.
            from exporter.home_assistant.publisher import Publisher  # noqa: PLC0415

            metrics = MqttMetrics(self._metrics)
            # What waits for the broker before waits for this one.
            self._events = self._events or Events(metrics)
            self._shown = ShownAccounts(
                wish, self._accounts, self._calls, self._leads, self._balances
            )
            self._publisher = Publisher(
                wish, self._shown, self._events, self._calls.ledger, metrics, self._others
            )
        self._running = self._spawn(_go_over(self._running, self._publisher))

    async def stop(self, within: float) -> None:
        """Tell what waits, and that nobody tells any more; give up after some seconds."""
        if self._publisher:
            self._publisher.stop(take_back=False)
        await _end(self._running, within)

    def _finished(self, account: str, row: int) -> None:
        if self._events and self._shown and self._shown.shows(account):
            self._events.add(Waiting(account, row))

    def _leads(self) -> bool:
        replica = self._replica()
        return replica is None or replica.leads

    def _others(self) -> bool:
        replica = self._replica()
        return replica is not None and replica.alive > 1


def _place(config: HomeAssistantConfig | None) -> tuple[object, ...]:
    """Return what the topics of a configuration hang on."""
    return (config.url, config.discovery_prefix, config.topic_prefix) if config else ()


async def _go_over(old: asyncio.Task[None] | None, new: Publisher | None) -> None:
    await _end(old, _GOODBYE)
    if new:
        await new.run()


async def _end(running: asyncio.Task[None] | None, within: float) -> None:
    if running:
        await asyncio.wait([running], timeout=within)
        running.cancel()
        await asyncio.wait([running])
