"""Reserving turns in asking the accounts: see `exporter.polling.turns`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from exporter.account import Account
from exporter.errors import LedgerError
from exporter.ledger.sharing import Grant, Wish
from exporter.polling.turns import Lease, Turns

_RETRY: Final = 1.0
"""Seconds after which turns that could not be reserved are tried again."""

_MOST_LEAD: Final = 5.0
"""Seconds that turns are reserved ahead, at most: for so long others have to wait."""

Reserve = Callable[[Sequence[Wish], float], Awaitable[Sequence[Grant]]]


class Reserving:
    """Reserves turns, for all accounts that need some at a time.

    Args:
        reserve: see `Sharing.reserve`.
        accounts: the accounts that are polled; whoever changes them has it seen here.
        lease: see `Turns`.
    """

    def __init__(self, reserve: Reserve, accounts: Mapping[str, Account], lease: Lease) -> None:
        self._reserve = reserve
        self._accounts = accounts
        self._lease = lease
        self._loop = asyncio.get_running_loop()
        self._turns: dict[str, Turns] = {}
        self._wishing: set[str] = set()
        self._wished = asyncio.Event()
        self._offset: float | None = None  # of the server's clock from the loop's
        self._took = 0.0  # seconds that the last answer took to come
        self._lead = 0.0

    def turns(self, account: str, rate: float) -> Turns:
        """Return what keeps all exporters together to the rate of an account."""
        turns = Turns(self._lease, partial(self._wish, account), rate)
        self._turns[account] = turns
        return turns

    def end(self, account: str) -> None:
        """Reserve nothing more for an account."""
        self._turns.pop(account, None)

    async def run(self) -> None:
        """Reserve what is wished for, until cancelled."""
        while True:
            await self._wished.wait()
            self._wished.clear()
            names, self._wishing = self._wishing & self._turns.keys(), set()
            wishes = [Wish(name, *self._turns[name].wish()) for name in sorted(names)]
            asked = self._loop.time()
            grants: Sequence[Grant] = ()
            try:
                grants = await self._reserve(wishes, self._lead)
            except LedgerError:
                await asyncio.sleep(_RETRY)
            if grants:
                self._follow_clock(grants[0].now, asked)
            self._hand_out(wishes, grants)

    def _wish(self, account: str) -> None:
        self._wishing.add(account)
        self._wished.set()

    def _hand_out(self, wishes: Iterable[Wish], grants: Iterable[Grant]) -> None:
        granted = {grant.account: grant.first for grant in grants}
        for account, slots, apart in wishes:
            if (turns := self._turns.get(account)) is None:
                continue
            if (first := granted.get(account)) is None:
                turns.refused()
            else:
                turns.granted(first - (self._offset or 0.0), slots, apart)
            if known := self._accounts.get(account):
                known.poller.wake()

    def _follow_clock(self, server: float, asked: float) -> None:
        """Learn how the server's clock stands to the loop's: between the request and its answer."""
        answered = self._loop.time()
        least, most = server - answered, server - asked
        known = least if self._offset is None else self._offset
        self._offset = min(max(known, least), most)
        # One answer that is slow keeps nobody waiting; where the next one is, too, all turns would
        # come too late.
        took, self._took = self._took, answered - asked
        self._lead = min(_MOST_LEAD, 1.5 * min(took, self._took))
