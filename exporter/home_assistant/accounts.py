"""The accounts that Home Assistant sees, and what it sees of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from exporter.account import Account
from exporter.balances import Balance
from exporter.config import HomeAssistantConfig
from exporter.errors import LedgerError
from exporter.home_assistant.payloads import Topics, device, state
from exporter.ledger.listing import count_unfinished
from exporter.tracker import CallTracker

_MIN_INTERVAL: Final = 1.0
"""Seconds between looks at what has changed."""

_PER_ACCOUNT: Final = 0.01
"""Seconds for each account between looks: those at a thousand take a hundredth of a core."""

_COUNT_INTERVAL: Final = 10.0
"""Seconds between counts of the calls of all exporters, where they share the ledger."""


class ExposedAccounts:
    """The accounts that one configuration exposes.

    Args:
        config: that configuration.
        accounts: live mapping, shared by reference.
        calls: the tracker of their calls.
        leads: whether this exporter publishes them, among those that share a ledger.
        balances: live mapping, shared by reference.

    Attributes:
        topics: of the messages.
    """

    def __init__(
        self,
        config: HomeAssistantConfig,
        accounts: Mapping[str, Account],
        calls: CallTracker,
        leads: Callable[[], bool],
        balances: Mapping[str, Balance],
    ) -> None:
        self.topics = Topics(config.discovery_prefix, config.topic_prefix)
        self._only = config.accounts
        self._accounts = accounts
        self._calls = calls
        self._leads = leads
        self._balances = balances
        self._watched: Mapping[str, int] = {}
        self._count_at = 0.0

    @property
    def interval(self) -> float:
        """The seconds after which `messages` may return others."""
        return max(_MIN_INTERVAL, _PER_ACCOUNT * len(self._accounts))

    async def messages(self) -> Mapping[str, bytes] | None:
        """Return what a broker is to retain, by topic; None where another exporter publishes."""
        if not self._leads():
            return None
        await self._count_watched()
        now, wanted = time.time(), dict[str, bytes]()
        for name, account in list(self._accounts.items()):
            if self._only is None or name in self._only:
                balance = self._balances.get(name)
                wanted[self.topics.device(name)] = device(
                    self.topics, name, with_balance=balance is not None
                )
                recent = self._calls.histories.recent(name, now)
                wanted[self.topics.state(name)] = state(
                    account.status,
                    recent,
                    self._watched.get(name, len(account.poller.calls)),
                    balance and balance.vnd,
                )
                await asyncio.sleep(0)  # answers and scrapes get their turn
        return wanted

    async def _count_watched(self) -> None:
        """Count the open calls of all exporters: the poller of this one has a part of them."""
        ledger, now = self._calls.ledger, time.monotonic()
        if ledger.store.shared and now >= self._count_at:
            self._count_at = now + _COUNT_INTERVAL
            try:
                counted = await ledger.call(count_unfinished, ledger.database)
            except LedgerError:
                return  # counted and logged where it happened; the last counts stay
            self._watched = dict.fromkeys(self._accounts, 0) | counted
