"""Decide which accounts this exporter polls when several share a ledger, by holding leases."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from typing import Final, TypeVar

import structlog

from exporter.account import Account
from exporter.backoff import ExponentialBackoff
from exporter.errors import LedgerError
from exporter.esms.codes import Outcome
from exporter.ledger.leases import (
    Leases,
    add_leases,
    give_up_leases,
    read_leases,
    release_leases,
    renew_leases,
    take_leases,
)
from exporter.ledger.ledger import Ledger
from exporter.supervisor import Spawn
from exporter.threads import SerialThread
from exporter.tracker import CallTracker

R = TypeVar("R")

# Renewals per lifetime of a lease.
_RENEWALS: Final = 3
# The part of its lifetime for which a lease is used. The rest is a margin for late timers: polling
# must stop before another exporter takes the lease.
_TRUSTED: Final = 0.9
# Seconds between reads of other exporters' changes, and between recounts of the open calls.
_CHECK_INTERVAL: Final = 1.0
_RECOUNT_INTERVAL: Final = 60.0
# Outcomes that may be local to this machine: another exporter may reach the provider.
_UNREACHABLE: Final = frozenset({Outcome.CONNECTION, Outcome.TIMEOUT, Outcome.TLS})
# Seconds for which an unreachable account is left to other exporters.
_AVOID: Final = ExponentialBackoff(60.0, 900.0)

_log = structlog.get_logger(__name__)


def plan(
    me: str,
    configured: Collection[str],
    avoided: Collection[str],
    held: Collection[str],
    known: Leases,
    patience: float,
    *,
    take_expired: bool,
) -> tuple[list[str], list[str]]:
    """Return the leases to take, and those to give up, so that exporters hold equally many. Pure.

    All exporters decide by the same rules: a free lease goes to the exporter with the fewest
    leases among those that want it; after `patience` seconds, any exporter may take it. An exporter
    gives up a lease if another one that wants it holds at least two fewer, or if it avoids the
    account. `held` are the accounts that it polls.
    """
    wanted = {id_: peer.accounts for id_, peer in known.exporters.items()}
    wanted[me] = frozenset(configured) - frozenset(avoided)
    count = Counter(
        lease.holder
        for name, lease in known.leases.items()
        if lease.holder and lease.overdue <= 0 and (lease.holder != me or name in held)
    )
    take: list[str] = []
    give_up = [
        name
        for name, lease in known.leases.items()
        if lease.holder == me and name not in configured
    ]

    def fewest(account: str, exporters: Collection[str]) -> str | None:
        able = [id_ for id_ in exporters if account in wanted[id_]]
        return min(able, key=lambda id_: (count[id_], id_), default=None)

    for name in sorted(set(configured).difference(held)):
        if (lease := known.leases.get(name)) is None:
            continue
        mine = lease.holder == me
        if lease.holder is not None and not mine and not (lease.overdue > 0 and take_expired):
            continue
        best = fewest(name, wanted) or me
        if best == me or (not mine and lease.overdue > patience):
            take.append(name)
            count[me] += 1
        else:
            count[best] += 1
            if mine:
                give_up.append(name)
    others = wanted.keys() - {me}
    for name in sorted(set(held).intersection(configured)):
        best_other = fewest(name, others)
        if best_other and (name in avoided or count[me] - count[best_other] >= 2):
            give_up.append(name)
            count[me] -= 1
            count[best_other] += 1
    return take, give_up


class LeaseHolder:
    """Takes, renews and gives up leases on accounts.

    Args:
        accounts: polled accounts: live mapping, shared by reference.
        taken: called to start polling accounts whose leases were taken.
        lost: called to stop polling accounts at once.

    Attributes:
        held_until: loop time until which the leases may be used.
        evictions: how often leases were lost or could not be renewed in time.
        last_heartbeat: Unix time of the last renewal; 0 before the first.
        name: the host and the process of this exporter.
        peers: the names of the other live exporters, at the last read.
        standby: accounts not held here, with the name of the exporter that polls them, or "".
        is_leader: whether this exporter publishes what one of them has to publish.
    """

    def __init__(
        self,
        ledger: Ledger,
        calls: CallTracker,
        accounts: Mapping[str, Account],
        taken: Callable[[Collection[str]], Awaitable[None]],
        lost: Callable[[Collection[str]], None],
        spawn: Spawn,
    ) -> None:
        self._id = ledger.store.exporter or ""
        self.name = f"{socket.gethostname()}:{os.getpid()}"[:255]
        # A thread of its own, so that renewals do not wait for other statements.
        self._thread = SerialThread("leases")
        self._ledger, self._calls, self._accounts = ledger, calls, accounts
        self._taken, self._lost, self._spawn = taken, lost, spawn
        self._loop = asyncio.get_running_loop()
        self._configured: frozenset[str] = frozenset()
        self._added: frozenset[str] = frozenset()  # accounts with a row in `leases`
        self._heartbeat = math.inf
        self._tasks: list[asyncio.Task[None]] = []
        self._held: dict[str, int] = {}  # epochs, by account
        self._expiry: asyncio.TimerHandle | None = None
        self._renewed_at = -math.inf
        # The wanted accounts and the heartbeat at the last renewal; None before the first.
        self._announced: tuple[frozenset[str], float] | None = None
        self._take_expired_from = -math.inf  # expired leases are not taken before
        self._avoided: dict[str, float] = {}  # end of the avoidance, by account
        self._failures = Counter[str]()  # consecutive times an account was unreachable
        self._recount_at = self._loop.time() + _RECOUNT_INTERVAL
        self._errors = 0  # `Ledger.errors` at the last resync
        self.held_until = -math.inf
        self.evictions, self.last_heartbeat = 0, 0.0
        self.peers: list[str] = []
        self.standby: dict[str, str] = {}
        self.is_leader = False
        self._problem: str | None = None

    @property
    def problem(self) -> str | None:
        """The reason why the ledger cannot be shared now; None when it can."""
        silent = self._loop.time() >= self._renewed_at + _TRUSTED * self._heartbeat
        if self._problem is None and silent:
            return "the ledger does not answer: other exporters may have taken over"
        return self._problem

    def configure(self, accounts: Collection[str], heartbeat: float) -> None:
        """Change the configured accounts and the lifetime of leases, in seconds."""
        self._configured, self._heartbeat = frozenset(accounts), heartbeat
        self._avoided = {name: at for name, at in self._avoided.items() if name in accounts}
        self._held = {name: epoch for name, epoch in self._held.items() if name in accounts}

    def holders(self) -> dict[str, list[str]]:
        """Return the accounts of each exporter, by name; accounts without one are under ""."""
        holders = {**{peer: [] for peer in self.peers}, self.name: sorted(self._accounts)}
        for account, holder in sorted(self.standby.items()):
            holders.setdefault(holder, []).append(account)
        return holders

    def epoch(self, account: str) -> int | None:
        """Return the epoch of the lease on an account; None if it is not held."""
        return self._held.get(account)

    async def start(self) -> None:
        """Take leases, and renew and use them in the background."""
        with suppress(LedgerError):  # retried
            await self._keep()
        self._tasks = [self._spawn(self._repeat(work)) for work in (self._keep, self._sync)]

    async def release(self, timeout: float) -> None:
        """Stop polling and release all leases, so that other exporters take over at once."""
        for task in self._tasks:
            task.cancel()  # it would take them again
        self.is_leader = False
        self._lose(list(self._held))
        try:
            async with asyncio.timeout(timeout):
                await self._execute(release_leases, self._id)
        except (LedgerError, TimeoutError) as error:
            # The leases expire.
            _log.warning("leases not released", problem=str(error) or "no answer in time")

    def close(self) -> None:
        """End the thread after its current work."""
        self._thread.close()

    async def _repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except LedgerError as error:
                self._set_problem(str(error))
            await asyncio.sleep(min(_CHECK_INTERVAL, self._heartbeat / (2 * _RENEWALS)))

    def _set_problem(self, problem: str | None) -> None:
        if problem and self._problem is None:
            _log.error("lease renewal failed", problem=problem)
        elif self._problem and problem is None:
            _log.info("lease renewal recovered")
        self._problem = problem

    # Leases.

    async def _keep(self) -> None:
        """Renew leases when due, then take and give up leases as `plan` decides."""
        if new := self._configured - self._added:
            await self._execute(add_leases, new)
            self._added |= new
        self._avoid_unreachable()
        asked, heartbeat = self._loop.time(), self._heartbeat
        wanted = self._configured - self._avoided.keys()
        due = asked >= self._renewed_at + heartbeat / _RENEWALS
        if renewing := due or self._announced != (wanted, heartbeat):
            me = self._id, self.name, wanted, list(self._held), heartbeat
            await self._execute(renew_leases, *me)
        known = await self._execute(read_leases)
        for name, epoch in list(self._held.items()):
            if (lease := known.leases.get(name)) is None or lease[:2] != (self._id, epoch):
                _log.warning("lease lost", account=name)
                self.evictions += 1
                self._lose([name])
        # After an outage of the ledger, give the other holders time to renew.
        now = self._loop.time()
        if math.inf > now - self._renewed_at > 2 * heartbeat / _RENEWALS:
            self._take_expired_from = now + heartbeat
        if renewing:
            self.last_heartbeat, self._renewed_at = time.time(), asked
            self._announced = wanted, heartbeat
            self._hold_until(asked + _TRUSTED * heartbeat)
        self.is_leader = self._id == min(known.exporters, default="")
        self.peers = sorted(peer.name for id_, peer in known.exporters.items() if id_ != self._id)
        self.standby = {
            name: known.exporters[lease.holder].name if lease.holder in known.exporters else ""
            for name in self._configured - self._accounts.keys()
            if (lease := known.leases.get(name))
        }
        mine = self._id, self._configured, self._avoided, self._held
        take, give_up = plan(*mine, known, heartbeat, take_expired=now >= self._take_expired_from)
        if give_up:
            self._lose(give_up)
            await self._execute(give_up_leases, self._id, give_up)
        if take:
            await self._take(take)
        self._set_problem(None)

    def _hold_until(self, until: float) -> None:
        self.held_until = until
        for account in self._accounts.values():
            account.poller.allow_until(until)
        if self._expiry:
            self._expiry.cancel()
        self._expiry = self._loop.call_at(until, self._expire)

    def _expire(self) -> None:
        if self._held:
            _log.warning("leases expired", accounts=len(self._held))
            self.evictions += 1
            self._lose(list(self._held))

    async def _take(self, names: Collection[str]) -> None:
        taken = await self._execute(take_leases, self._id, names, self._heartbeat)
        if self._loop.time() >= self.held_until:
            return  # the statement took too long: take them again after the next renewal
        # Leases on accounts that were removed from the configuration meanwhile are given up.
        started = {name: epoch for name, epoch in taken.items() if name in self._configured}
        self._held |= started
        if started:
            # In the background: this loop has to renew the leases meanwhile.
            self._spawn(self._begin(list(started)))

    async def _begin(self, names: Collection[str]) -> None:
        try:
            await self._taken(names)
        except LedgerError as error:
            self._set_problem(str(error))
            self._lose(names)  # `_keep` takes them again

    def _lose(self, names: Collection[str]) -> None:
        self._held = {name: at for name, at in self._held.items() if name not in names}
        self._lost(names)

    def _avoid_unreachable(self) -> None:
        """Leave accounts for which the provider is unreachable to other exporters."""
        now = self._loop.time()
        for name, until in list(self._avoided.items()):
            if now >= until:
                del self._avoided[name]
        for name, account in self._accounts.items():
            if account.poller.breaker.reason in _UNREACHABLE:
                if name not in self._avoided:
                    self._failures[name] += 1
                    self._avoided[name] = now + _AVOID.wait(self._failures[name])
            elif account.stats.last_success:
                self._failures.pop(name, None)
                self._avoided.pop(name, None)

    # Changes by other exporters.

    async def _sync(self) -> None:
        if (errors := self._ledger.errors) != self._errors:
            # A transaction whose answer was lost may have been committed.
            await self._calls.resync()
            self._errors = errors
        # Poll claimed calls soon: their last poll may be long ago.
        while await self._calls.sync_with_peers(within=self._heartbeat / 2):
            pass
        if self._loop.time() >= self._recount_at:
            await self._ledger.execute(self._ledger.store.recount)
            self._recount_at = self._loop.time() + _RECOUNT_INTERVAL

    async def _execute(self, statements: Callable[..., R], *args: object) -> R:
        run = self._ledger.database.run
        return await self._ledger.call_in(self._thread, run, statements, *args)
