"""The accounts that Home Assistant sees, and what it sees of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import Final

from exporter.account import Account
from exporter.config import HomeAssistantConfig
from exporter.home_assistant.payloads import Topics, device, state
from exporter.tracker import CallTracker

_MIN_INTERVAL: Final = 1.0
"""Seconds between looks at what has changed."""

_PER_ACCOUNT: Final = 0.01
"""Seconds for each account between looks: those at a thousand take a hundredth of a core."""


class ExposedAccounts:
    """The accounts that one configuration exposes.

    Args:
        config: that configuration.
        accounts: those that are polled here: live mapping, shared by reference.
        configured: those, and others that other exporters may poll: shared by reference, too.
        calls: the tracker of their calls.

    Attributes:
        topics: of the messages.
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
        """The seconds after which `messages` may return others."""
        return max(_MIN_INTERVAL, _PER_ACCOUNT * len(self._accounts))

    def left_to_others(self) -> set[str]:
        """Return the topics of accounts that another exporter may publish."""
        standby = [name for name in self._configured if name not in self._accounts]
        return {
            topic(name) for name in standby for topic in (self.topics.device, self.topics.state)
        }

    async def messages(self) -> Mapping[str, bytes]:
        """Return what a broker is to retain of the accounts that are polled here, by topic."""
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
                await asyncio.sleep(0)  # answers and scrapes get their turn
        return wanted
