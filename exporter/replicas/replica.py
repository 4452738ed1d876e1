"""This exporter as one of several that share a ledger."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

import structlog

from exporter.account import Account
from exporter.calls import WatchedCall
from exporter.errors import LedgerError, SourceError
from exporter.ledger.ledger import Ledger
from exporter.ledger.records import CHUNK, HASTEN
from exporter.ledger.sharing import Grant, Member, Sharing, Wish
from exporter.metrics.catalogue import Catalogue
from exporter.polling.turns import Lease
from exporter.replicas.reserving import Reserving
from exporter.replicas.shares import excess, leads, peers_of, share
from exporter.replicas.totals import SharedTotals
from exporter.threads import SerialThread
from exporter.tracker import CallTracker

P = ParamSpec("P")
R = TypeVar("R")

_BEATS: Final = 3
"""How often a replica beats within the time after which it counts as dead."""

_TRUSTED: Final = 0.9
"""The share of that time for which a replica trusts its last beat: it is to stop before others take
over, also where a timer is late."""

_LOOK_EVERY: Final = 1.0
"""Seconds after which it is looked at what the others did."""

_RECOUNT_EVERY: Final = 60.0
"""Seconds after which it is counted how many calls all exporters watch."""

_PATIENCE: Final = 3
"""Looks for which a replica that has given calls up leaves them to the others."""

_log = structlog.get_logger(__name__)


class _TakenOverError(Exception):
    """Others have declared this replica dead."""


class Replica:
    """This exporter as one of several that share a ledger.

    It holds a number for as long as it beats. What it holds by that number it polls, and nobody
    else does; where it cannot beat for too long, it stops, and the others go on.

    Args:
        ledger: open, and shared.
        calls: where calls that are taken over go, and what others have counted.
        accounts: the accounts that are polled; whoever changes them has it seen here.
        metrics: where it shows how it is.
        heartbeat: seconds of silence after which a replica counts as dead; may be changed.

    Attributes:
        totals: shows what all of them count.
        reserving: keeps all exporters together to the accounts' rates.
        draining: nothing is taken over any more.
    """

    def __init__(
        self,
        ledger: Ledger,
        calls: CallTracker,
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
        self._thread = SerialThread("replica")
        self._loop = asyncio.get_running_loop()
        self._id = 0
        self._lease = Lease()
        self._beating_since = math.inf  # without a gap
        self._next_beat = -math.inf
        self._members: list[Member] = []
        self._gave_up = 0  # looks for which calls that are free are left to others
        self._left = False  # whether some were left to them at the last look
        self.totals = SharedTotals(
            lambda since, known: self._call(self._sharing.changes, since, known), calls
        )
        self.reserving = Reserving(self._reserve, accounts, self._lease)
        self._errors = 0  # of the ledger, of which the consequences were seen to
        self._heard: list[int] = []  # messages that were followed
        self._recount_at = math.inf
        self.draining = False
        self._problem: str | None = None

    @property
    def problem(self) -> str | None:
        """Why the ledger cannot be shared now, if it cannot."""
        if self._problem is None and self._loop.time() >= self._lease.until:
            return "the ledger does not answer: others may poll by now"
        return self._problem

    @property
    def alive(self) -> int:
        """How many exporters that share the ledger are alive, as this one last saw."""
        return sum(member.alive for member in self._members)

    @property
    def leads(self) -> bool:
        """Whether it does what one of them is to do; see `exporter.replicas.shares.leads`."""
        peers = peers_of(self._accounts)
        return self._loop.time() < self._lease.until and leads(self._members, self._id, peers)

    async def join(self) -> None:
        """Become one of the exporters.

        Raises:
            LedgerError: the ledger failed.
        """
        name = f"{socket.gethostname()}:{os.getpid()}"[:255]
        self._id = await self._call(self._sharing.join, name, self.heartbeat)
        self._ledger.store.replica = self._id
        self._next_beat = -math.inf
        self._beating_since = math.inf
        self._recount_at = self._loop.time() + _RECOUNT_EVERY
        _log.info("sharing the ledger", replica=self._id)

    async def run(self) -> None:
        """Beat, take over what is free, and look at what the others did, until cancelled."""
        while True:
            try:
                try:
                    await self._look()
                except _TakenOverError:
                    await self._start_over()
            except LedgerError as error:
                self._note(str(error))
            else:
                self._note(None)
            await asyncio.sleep(self._look_every)

    async def leave(self, within: float) -> None:
        """Have the others take over at once what this one polls.

        Nothing is polled from here on; other requests to the accounts still get turns.
        """
        self.draining = True
        try:
            async with asyncio.timeout(within):
                await self._call(self._sharing.leave, self._id)
        except (LedgerError, TimeoutError) as error:
            # They find out by themselves.
            _log.warning("others not told of the end", problem=str(error) or "no answer in time")

    def close(self) -> None:
        """End the thread, once what it is at is done."""
        self._thread.close()

    async def give_up_account(self, name: str) -> None:
        """Let others have the calls of an account that is not polled here any more."""
        try:
            while name not in self._accounts:
                self.reserving.end(name)
                if await self._call(self._sharing.release_account, self._id, name) < CHUNK:
                    return
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
        if await self._beat_in_time() and not self.draining:
            await self._even_out()
        if (errors := self._ledger.errors) != self._errors:
            # What was not answered any more may have been done.
            await self._beating(self._load())
            self._errors = errors
        messages = await self._call(self._sharing.messages, self._id, self._heard)
        for _, row, message in messages:
            self._calls.told(row, hasten=message == HASTEN)
        self._heard = [number for number, *_ in messages]
        await self._beating(self.totals.follow())
        if not self.draining:
            await self._claim()
        if self._loop.time() >= self._recount_at:
            await self._beating(self._ledger.call(self._ledger.store.recount))
            self._recount_at = self._loop.time() + _RECOUNT_EVERY

    async def _load(self) -> None:
        for name in list(self._accounts):
            async for _ in self._calls.load(name):
                pass

    async def _beating(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for the ledger's thread, which may have much else to do, and beat meanwhile.

        Raises:
            _TakenOverError: see `_beat_in_time`.
            LedgerError: the ledger failed.
        """
        task = self._loop.create_task(work)
        try:
            while not task.done():
                await self._beat_in_time()
                left = self._next_beat - self._loop.time()
                await asyncio.wait([task], timeout=max(0.0, left))
            task.result()
        finally:
            task.cancel()

    async def _beat_in_time(self) -> bool:
        """Tell the others that this one is alive, if it is time to.

        Returns:
            Whether it was.

        Raises:
            _TakenOverError: they had thought that it was not.
            LedgerError: the ledger failed.
        """
        asked = self._loop.time()
        if asked < self._next_beat:
            return False
        if asked >= self._lease.until:
            self._beating_since = asked
        # Where nobody could beat for a while, all are silent: they are given the time to go on.
        judge = asked - self._beating_since > self.heartbeat
        # And what kept this one from beating until now kept them, too.
        late = max(0.0, asked - self._next_beat - self._look_every)
        heartbeat = self.heartbeat  # which may be changed while the answer is awaited
        members = await self._call(
            self._sharing.beat,
            self._id,
            peers_of(self._accounts),
            self._calls.count,
            heartbeat,
            late if judge else None,
        )
        if members is None:
            raise _TakenOverError
        self._lease.until = asked + _TRUSTED * heartbeat
        self._next_beat = asked + heartbeat / _BEATS
        self._members = members
        self._metrics.replicas.set(self.alive)
        self._metrics.last_heartbeat.set(time.time())
        for account in self._accounts.values():
            account.poller.wake()  # the lease may have ended while the answer was awaited
        return True

    async def _start_over(self) -> None:
        """Begin anew, after the others have taken over what this one polled."""
        self._lease.until = -math.inf
        _log.warning("others have taken over", replica=self._id)
        await self.join()
        try:
            # What is taken in at this moment, by the old number, is theirs, too.
            await self._ledger.call(lambda: None)
        finally:
            for account in self._accounts.values():
                account.poller.clear()
            self._errors = -1  # what was taken in since, by the new one, is to be polled
            self._metrics.evictions.inc()

    @property
    def _look_every(self) -> float:
        return min(_LOOK_EVERY, self.heartbeat / (2 * _BEATS))

    def _share(self) -> float:
        peers = peers_of(self._accounts)
        return share(self._members, self._id, peers, self._calls.count)

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
                self._left = False
                return
            strays = [call.call.id for call in claimed.calls if call.account not in self._accounts]
            if strays:  # of an account that has just gone
                await self._call(self._sharing.release, self._id, strays)
            # Soon, as whoever asked for them before may have done so long ago.
            self._calls.take_over(claimed, within=self.heartbeat / 2)
            self._metrics.claimed.inc(len(claimed.calls))
            beyond = self._calls.count > self._share()
            if self._loop.time() >= self._next_beat or (beyond and not self._left):
                self._left = beyond  # for the others, if they are there
                return

    async def _even_out(self) -> None:
        """Give calls up where others hold fewer."""
        held = self._calls.count
        if not (over := excess(held, self._share())):
            return
        self._gave_up = _PATIENCE
        for account in list(self._accounts.values()):
            of_it = math.ceil(over * len(account.poller.calls) / held)
            while of_it > 0 and (spare := account.poller.idle_calls(min(of_it, CHUNK))):
                of_it -= len(spare)
                await self._give_up(account, spare)
                if self._loop.time() >= self._next_beat:
                    return  # the rest after that beat

    async def _give_up(self, account: Account, spare: list[WatchedCall]) -> None:
        # First here: where the answer is lost, what is held still is polled again, see `_look`.
        for call in spare:
            account.poller.remove(call.id)
        await self._call(self._sharing.release, self._id, [call.id for call in spare])
        self._metrics.released.inc(len(spare))

    # Beside the loop.

    def _note(self, problem: str | None) -> None:
        if problem and self._problem is None:
            _log.error("the ledger cannot be shared", problem=problem)
        elif self._problem and problem is None:
            _log.info("the ledger is shared again")
        self._problem = problem

    async def _reserve(self, wishes: Sequence[Wish], lead: float) -> Sequence[Grant]:
        try:
            return await self._call(self._sharing.reserve, wishes, lead)
        except LedgerError:
            self._errors += 1  # of no consequence: turns that are lost are nobody's
            raise

    async def _call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await self._thread.submit(partial(function, *args, **kwargs))
        except (LedgerError, SourceError) as error:
            self._ledger.count_error()
            raise LedgerError(str(error)) from None
