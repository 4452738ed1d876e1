"""Which accounts Home Assistant is told of, and what of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from exporter.account import Account
from exporter.balances import Balance
from exporter.config import HomeAssistantConfig
from exporter.errors import LedgerError
from exporter.home_assistant.discovery import STATE, Topics, device_of, discovery
from exporter.home_assistant.states import state
from exporter.ledger.listing import count_unfinished
from exporter.tracker import CallTracker

_EVERY: Final = 1.0
"""Seconds after which it is looked at what has changed, at least."""

_FOR_EACH: Final = 0.01
"""Seconds for each account that this takes at least: a thousand take a hundredth of a core."""

_COUNT_EVERY: Final = 10.0
"""Seconds after which it is counted what all exporters watch, where they share the ledger."""


class ShownAccounts:
    """The accounts that one configuration shows.

    Args:
        config: that configuration.
        accounts: those that are polled; whoever changes them has it seen here.
        calls: what is watched, and what has become of it.
        leads: whether this exporter tells of them, among those that share a ledger.
        balances: those that the provider has told.

    Attributes:
        topics: what is said where.
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

    def shows(self, account: str) -> bool:
        """Tell whether an account is one of them."""
        return self._only is None or account in self._only

    @property
    def every(self) -> float:
        """The seconds after which `messages` is to be looked at again."""
        return max(_EVERY, _FOR_EACH * len(self._accounts))

    async def messages(self) -> Mapping[str, bytes] | None:
        """Return what a broker is to keep, by topic; None where another exporter sees to that."""
        if not self._leads():
            return None
        await self._count_watched()
        now, wanted = time.time(), dict[str, bytes]()
        for name, account in list(self._accounts.items()):
            if self.shows(name):
                device, balance = device_of(name), self._balances.get(name)
                wanted[self.topics.config(device)] = discovery(
                    self.topics, name, with_balance=balance is not None
                )
                recent = self._calls.histories.recent(name, now)
                wanted[self.topics.of(device, STATE)] = state(
                    account.status,
                    recent,
                    self._watched.get(name, len(account.poller.calls)),
                    balance and balance.vnd,
                )
                await asyncio.sleep(0)  # answers and scrapes get their turn
        return wanted

    async def _count_watched(self) -> None:
        """Count what all exporters watch: the poller of this one has a part of it."""
        ledger, now = self._calls.ledger, time.monotonic()
        if ledger.store.shared and now >= self._count_at:
            self._count_at = now + _COUNT_EVERY
            try:
                counted = await ledger.call(count_unfinished, ledger.database)
            except LedgerError:
                return  # counted and told where it happened; what was known stays
            self._watched = dict.fromkeys(self._accounts, 0) | counted
