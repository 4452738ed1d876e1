"""This exporter as one of several that share a ledger."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, ParamSpec, TypeVar

import structlog

from exporter.account import Account
from exporter.calls import WatchedCall
from exporter.errors import LedgerError, SourceError
from exporter.ledger.ledger import Ledger
from exporter.ledger.records import CHUNK, HASTEN, Snapshot
from exporter.ledger.sharing import Grant, Member, Sharing, Wish
from exporter.metrics.catalogue import Catalogue
from exporter.polling.turns import Lease, Turns
from exporter.watching import Watching
from exporter.worker import Worker

P = ParamSpec("P")
R = TypeVar("R")

_BEATS: Final = 3
"""How often a replica beats within the time after which it counts as dead."""

_TRUSTED: Final = 0.9
"""The share of that time for which a replica trusts its last beat: it is to stop before others take
over, also where a timer is late."""

_LOOK_EVERY: Final = 1.0
"""Seconds after which it is looked at what the others did."""

_RETRY: Final = 1.0
"""Seconds after which turns that could not be reserved are tried again."""

_UNEVEN: Final = 0.1
"""By how much more than its share a replica may hold before it gives calls up."""

_FEW: Final = 10
"""Calls that are not worth being handed on."""

_PATIENCE: Final = 3
"""Looks for which a replica that has given calls up leaves them to the others."""

_log = structlog.get_logger(__name__)


class Replica:
    """This exporter as one of several that share a ledger.

    It holds a number for as long as it beats. What it holds by that number it polls, and nobody
    else does; where it cannot beat for too long, it stops, and the others go on.

    Args:
        ledger: open, and shared.
        calls: where calls that are taken over go, and what others have counted.
        accounts: the accounts that are polled; whoever changes them has it seen here.
        metrics: where it shows how it is.
        heartbeat: seconds of silence after which a replica counts as dead.
    """

    def __init__(
        self,
        ledger: Ledger,
        calls: Watching,
        accounts: Mapping[str, Account],
        metrics: Catalogue,
        heartbeat: float,
    ) -> None:
        self._ledger = ledger
        self._calls = calls
        self._accounts = accounts
        self._metrics = metrics
        self.heartbeat = heartbeat
        self._sharing = Sharing(ledger.database)
        # Beside the ledger's: to beat is not to wait for anything.
        self._thread = Worker("replica")
        self._loop = asyncio.get_running_loop()
        self._id = 0
        self._lease = Lease()
        self._beating_since = math.inf  # without a gap
        self._next_beat = -math.inf
        self._members: list[Member] = []
        self._gave_up = 0  # looks for which calls that are free are left to others
        self._since = 0
        self._turns: dict[str, Turns] = {}
        self._wishing: set[str] = set()
        self._wished = asyncio.Event()
        self._offset: float | None = None  # of the server's clock from the loop's
        self._lead = 0.0
        self._problem: str | None = None

    async def join(self) -> None:
        """Become one of the exporters.

        Raises:
            LedgerError: the ledger failed.
        """
        name = f"{socket.gethostname()}:{os.getpid()}"[:255]
        self._id = await self._call(self._sharing.join, name)
        self._ledger.store.replica = self._id
        self._next_beat = -math.inf
        self._beating_since = math.inf
        _log.info("sharing the ledger", replica=self._id)

    def turns(self, account: str, rate: float) -> Turns:
        """Return what keeps all exporters together to the rate of an account."""
        turns = Turns(self._lease, partial(self._wish, account), rate)
        self._turns[account] = turns
        return turns

    def begin_with(self, snapshot: Snapshot) -> None:
        """Show what changes from here on: the rest is shown already."""
        self._calls.shown_totals = snapshot.totals
        self._since = snapshot.since

    async def run(self) -> None:
        """Beat, take over what is free, and look at what the others did, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._reserve())
            while True:
                try:
                    await self._look()
                except LedgerError as error:
                    self._note(str(error))
                else:
                    self._note(None)
                await asyncio.sleep(min(_LOOK_EVERY, self.heartbeat / (2 * _BEATS)))

    async def leave(self, within: float) -> None:
        """End: the others take over at once what this one polled."""
        try:
            async with asyncio.timeout(within):
                await self._call(self._sharing.leave, self._id)
        except (LedgerError, TimeoutError) as error:
            # They find out by themselves.
            _log.warning("others not told of the end", problem=str(error))
        self._thread.close()

    async def give_up_account(self, name: str) -> None:
        """Let others have the calls of an account that is not polled here any more."""
        self._turns.pop(name, None)
        try:
            while await self._call(self._sharing.release_account, self._id, name) == CHUNK:
                pass
        except LedgerError as error:
            _log.warning("calls not given up", account=name, problem=str(error))

    async def tidy(self) -> None:
        """Forget exporters that ended long ago.

        Raises:
            LedgerError: the ledger failed.
        """
        await self._call(self._sharing.forget_ended)

    # Looking at what the others do.

    async def _look(self) -> None:
        if self._loop.time() >= self._next_beat and not await self._beat():
            await self._start_over()
            return
        for row, message in await self._call(self._sharing.messages, self._id):
            self._calls.told(row, hasten=message == HASTEN)
        known = self._calls.call_metrics.label_sets
        changes = await self._call(self._sharing.changes, self._since, known)
        self._since = changes.since
        await self._calls.show(changes)
        await self._claim()

    async def _beat(self) -> bool:
        """Tell the others that this one is alive; returns whether they had thought so."""
        asked = self._loop.time()
        # Where nobody could beat for a while, all are silent: they are given the time to go on.
        judge = asked - self._beating_since > self.heartbeat
        members = await self._call(
            self._sharing.beat,
            self._id,
            self._peers,
            self._calls.count,
            self.heartbeat if judge else None,
        )
        if members is None:
            return False
        if asked >= self._lease.until:
            self._beating_since = asked
        lapsed = self._lease.until <= asked
        self._lease.until = asked + _TRUSTED * self.heartbeat
        self._next_beat = asked + self.heartbeat / _BEATS
        self._members = members
        self._metrics.replicas.labels().value = float(sum(member.alive for member in members))
        self._metrics.last_heartbeat.labels().value = time.time()
        if lapsed:
            self._wake()
        await self._even_out()
        return True

    async def _start_over(self) -> None:
        """Begin anew, after the others have taken over what this one polled."""
        self._lease.until = -math.inf
        for account in self._accounts.values():
            account.poller.clear()
        self._metrics.evictions.labels().value += 1
        _log.warning("others have taken over", replica=self._id)
        await self.join()

    @property
    def _peers(self) -> str:
        """What is the same for those alone that poll the same accounts."""
        names = "\n".join(sorted(self._accounts))
        return hashlib.sha256(names.encode()).hexdigest()

    def _share(self) -> float:
        """Return how many calls each would hold if all held as many."""
        peers = self._peers
        others = [
            member.held
            for member in self._members
            if member.alive and member.peers == peers and member.id != self._id
        ]
        return (sum(others) + self._calls.count) / (len(others) + 1)

    async def _claim(self) -> None:
        if not self._accounts:
            return
        if self._gave_up:
            self._gave_up -= 1
            return
        ended = [member.id for member in self._members if not member.alive]
        while True:
            claimed = await self._call(self._sharing.claim, self._id, list(self._accounts), ended)
            if not claimed.calls:
                return
            # Soon, as whoever asked for them before may have done so long ago.
            self._calls.take_over(claimed, within=self.heartbeat / 2)
            self._metrics.claimed.labels().value += len(claimed.calls)
            if self._loop.time() >= self._next_beat or self._calls.count > self._share():
                return  # the rest is for the others, if they are there

    async def _even_out(self) -> None:
        """Give calls up where others hold fewer."""
        share = self._share()
        held = self._calls.count
        excess = held - math.ceil(share)
        if excess <= max(_FEW, _UNEVEN * share):
            return
        for account in list(self._accounts.values()):
            of_it = math.ceil(excess * len(account.poller.calls) / held)
            while of_it > 0 and (spare := account.poller.spare(min(of_it, CHUNK))):
                of_it -= len(spare)
                await self._give_up(account, spare)
        self._gave_up = _PATIENCE

    async def _give_up(self, account: Account, spare: list[WatchedCall]) -> None:
        for call in spare:
            account.poller.forget(call.id)
        try:
            await self._call(self._sharing.release, self._id, [call.id for call in spare])
        except LedgerError:
            for call in spare:
                account.poller.watch(call)
            raise
        self._metrics.released.labels().value += len(spare)

    # Taking turns.

    def _wish(self, account: str) -> None:
        self._wishing.add(account)
        self._wished.set()

    async def _reserve(self) -> None:
        while True:
            await self._wished.wait()
            self._wished.clear()
            names, self._wishing = self._wishing & self._turns.keys(), set()
            wishes = [Wish(name, *self._turns[name].wish()) for name in sorted(names)]
            if not wishes:
                continue
            asked = self._loop.time()
            try:
                grants = await self._call(self._sharing.reserve, wishes, self._lead)
            except LedgerError as error:
                self._note(str(error))
                await asyncio.sleep(_RETRY)
                grants = []
            self._take(wishes, grants, asked)

    def _take(self, wishes: list[Wish], grants: list[Grant], asked: float) -> None:
        wished = {wish.account: wish for wish in wishes}
        if grants:
            self._follow_clock(grants[0].now, asked)
        for account, first, _ in grants:
            wish = wished.pop(account)
            if turns := self._turns.get(account):
                turns.granted(first - (self._offset or 0.0), wish.slots, wish.apart)
        for account in wished:
            if turns := self._turns.get(account):
                turns.refused()
        for wish in wishes:
            if known := self._accounts.get(wish.account):
                known.poller.wake()

    def _follow_clock(self, server: float, asked: float) -> None:
        """Learn how the server's clock stands to the loop's: between the request and its answer."""
        answered = self._loop.time()
        least, most = server - answered, server - asked
        known = least if self._offset is None else self._offset
        self._offset = min(max(known, least), most)
        self._lead = min(0.5, 1.5 * (answered - asked))

    # Beside the loop.

    def _wake(self) -> None:
        for account in self._accounts.values():
            account.poller.wake()

    def _note(self, problem: str | None) -> None:
        if problem and self._problem is None:
            _log.error("the ledger cannot be shared", problem=problem)
        elif self._problem and problem is None:
            _log.info("the ledger is shared again")
        self._problem = problem

    async def _call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await self._thread.submit(partial(function, *args, **kwargs))
        except (LedgerError, SourceError) as error:
            self._metrics.ledger_errors.labels().value += 1
            raise LedgerError(str(error)) from None
