"""The calls that are watched: how they are added and removed, and what is shown of them."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

import structlog

from exporter.account import Account
from exporter.call_totals import CallTotals
from exporter.calls import CallbackOutcome, Finished, GiveUpPolicy, WatchedCall, verdict
from exporter.esms.answers import Answer
from exporter.ids import ReferenceId
from exporter.ledger.calls import (
    ended_of,
    find_call,
    label_sets_of,
    list_sources,
    move_cursor,
    read_cursor,
    recent_calls,
)
from exporter.ledger.clock import Clocks
from exporter.ledger.labels import NO_LIMITS, LabelLimits
from exporter.ledger.leases import FORGET, POLL_NOW, TOTALS, LeaseStore, notify_holders
from exporter.ledger.ledger import Ledger
from exporter.ledger.types import (
    BATCH_SIZE,
    CallRecord,
    Committed,
    Count,
    FinishedCall,
    InsertResult,
    InsertSummary,
    NewCall,
    Observation,
    StoredCall,
)
from exporter.polling.intervals import WINDOW
from exporter.recent_results import Histories

# Calls after which Python's collector of cycles is told that they stay. It would look at each of
# them every now and then, and find nothing: an event loop with a million stands still for 0.1 s.
_FREEZE_EVERY: Final = 50_000

# How many times as long as it took to read totals they are left alone.
_TOTALS_SHARE: Final = 10.0

_log = structlog.get_logger(__name__)


class CallTracker:
    """Between the sources, the ledger, the pollers and the metrics of finished calls.

    Whatever is done to a call is done in the ledger first, and then shown. Methods that wait for
    the ledger raise `LedgerError` where it fails.

    Args:
        accounts: the accounts that are polled here: live mapping, shared by reference.
        clocks: see `Ledger`, as for `observe_commit`.
    """

    def __init__(
        self,
        accounts: Mapping[str, Account],
        clocks: Clocks | None = None,
        observe_commit: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self._accounts = accounts
        self.ledger = Ledger(self._committed, clocks, observe_commit)
        self.totals = CallTotals()
        self.recent_results = Histories()
        # Recent calls by account, until the account is there to learn from them.
        self._past: dict[str, deque[FinishedCall]] = {}
        self._max_calls, self._limits = math.inf, NO_LIMITS
        self._unfrozen = 0
        self._handled_messages: list[int] = []  # notices of other exporters
        self._stale, self._totals_at = False, -math.inf
        self._subscribers: list[Callable[[Committed], None]] = []

    def subscribe(self, subscriber: Callable[[Committed], None]) -> None:
        """Call a function with each group of results, once it is durable."""
        self._subscribers.append(subscriber)

    async def configure(
        self,
        limits: LabelLimits = NO_LIMITS,
        retention: float = math.inf,
        max_calls: float = math.inf,
    ) -> None:
        """Change what is remembered and shown, and how many calls of an account may be open."""
        self._max_calls = max_calls
        self.ledger.store.configure(limits, retention)
        if limits != self._limits:
            await self.reload_totals(limits.names)
            self._limits = limits

    @property
    def count(self) -> int:
        """How many calls are polled."""
        return sum(len(account.poller.calls) for account in self._accounts.values())

    async def load_totals(self, accounts: Collection[str]) -> None:
        """Show the totals and recent results of accounts that are polled here from now on."""
        since, ahead = self.recent_results.start(time.time()), self.ledger.clock.ahead
        past = await self.ledger.execute(recent_calls, since + ahead, accounts)
        finished = [self.ledger.to_machine_time(call) for call in past.calls]
        # What is committed between the two is added to the results, and read with the totals.
        self.recent_results.recall(accounts, finished, past.since - ahead)
        self._past |= {name: deque(maxlen=WINDOW) for name in accounts}
        for call in finished:
            self._past[call.account].append(call)
        snapshot = await self.ledger.call(self.ledger.store.snapshot, accounts)
        self.totals.show(accounts, snapshot)

    async def reload_totals(self, names: tuple[str, ...] | None = None) -> None:
        """Show the totals of the same accounts as they are in the ledger now.

        Args:
            names: of the labels that are shown from now on; the same by default.
        """
        accounts = set(self.totals.accounts)
        snapshot = await self.ledger.call(self.ledger.store.snapshot, accounts)
        accounts &= self.totals.accounts
        if names is not None:
            self.totals.configure(names)
        self.totals.show(accounts, snapshot)

    def drop_totals(self, account: str) -> None:
        """Show nothing of an account that is not polled here any more."""
        self.totals.hide([account])
        self.recent_results.forget(account)
        self._past.pop(account, None)

    def learn_recent_durations(self, account: str) -> None:
        """Have the poll intervals of an account learn from its recent results."""
        self._accounts[account].poller.learn_past(
            (call.status, call.finished_at - call.first_watched)
            for call in self._past.pop(account, ())
        )

    # For sources.

    async def add(self, source: str | None, calls: Iterable[NewCall]) -> InsertSummary:
        """Add calls, however many, and poll the new ones; see `Store.watch`.

        They are never held all at a time. Where this is cancelled, what the ledger is adding at
        that moment is polled nevertheless.

        Raises:
            LedgerError: the ledger failed; what it added before is watched.
        """
        added, rows, refused = 0, set[int](), Counter[str]()
        rest = iter(calls)
        while batch := list(islice(rest, BATCH_SIZE)):
            # The ledger's thread cannot be stopped: what it commits would not be polled.
            inserted = await asyncio.shield(self._insert(self.ledger.store.watch, source, batch))
            rows |= inserted.rows
            refused += inserted.refused
            added += len(inserted.added)
        return InsertSummary(added, rows, refused)

    async def push(self, requests: Sequence[Sequence[NewCall]]) -> Sequence[Count | str]:
        """Add the calls of requests; see `Store.push`."""
        return (await self._insert(self.ledger.store.push, requests)).counts

    async def _insert(self, insert: Callable[..., InsertResult], *args: object) -> InsertResult:
        now = self.ledger.clock.now()
        inserted = await self.ledger.call(insert, *args, now, self._max_calls)
        self.totals.learn(inserted.label_sets)
        self.totals.change_series(inserted.series)
        self.poll(inserted.added)
        return inserted

    async def delete(self, row: int) -> bool:
        """Stop watching a call, by its row, without counting it; returns whether it was watched."""
        now = self.ledger.clock.now()
        deleted = await self.ledger.call(self.ledger.store.delete, row, now)
        # Whether or not: it may be tried again, because the first answer was lost.
        self._forget(row)
        return deleted

    async def find(self, account: str, name: ReferenceId) -> CallRecord | None:
        """Return a call, if it is known."""
        return await self.ledger.execute(find_call, account, name)

    async def set_price(self, row: int, price: float) -> None:
        """Store what a call has cost, in VND; returns once that is durable."""
        added = await self.ledger.call(self.ledger.store.set_price, row, price)
        self.totals.add(added.items())

    async def mark_pushed(self, row: int) -> bool:
        """Watch a call even if nothing names it, or remember it; return whether it is there."""
        return await self.ledger.call(self.ledger.store.keep, row)

    async def apply_callback(self, call: CallRecord, answer: Answer) -> CallbackOutcome:
        """Finish a call, if that is what an answer means; returns once that is durable.

        Returns:
            `accepted`; `repeated` where the call has finished already; `hint` where the answer
            ends nothing, or no exporter polls the call's account.
        """
        account, name = self._accounts.get(call.account), ReferenceId(call.reference_id)
        watched = account.poller.calls.get(call.id) if account else None
        if watched is None and (account or self.ledger.store.exporter):
            # Perhaps another exporter polls it; or a canary has just placed it.
            watched = WatchedCall(call.id, name, call.first_watched)
        if watched is None:
            return await self._not_accepted(call.account, name)
        now = self.ledger.clock.now()
        # How long a call may take is for the exporter that polls it.
        decided = verdict(
            watched, answer, now, account.poller.give_up if account else GiveUpPolicy()
        )
        if not isinstance(decided, Finished):
            return CallbackOutcome.HINT
        observed = [Observation(call.account, watched, decided, now)]
        committed = await self.ledger.call(self.ledger.store.commit, observed)
        self._committed(observed, committed)
        if not committed.finished:
            return await self._not_accepted(call.account, name)
        if account:
            account.poller.learn(watched, decided, now, notified=True)
        return CallbackOutcome.ACCEPTED

    async def _not_accepted(self, account: str, name: ReferenceId) -> CallbackOutcome:
        known = await self.find(account, name)
        ended = known is not None and known.result is not None  # by a poll, which was first
        return CallbackOutcome.REPEATED if ended else CallbackOutcome.HINT

    async def poll_now(self, account: str, row: int) -> None:
        """Ask the provider about a call now, or have the exporter do it that polls the call."""
        known = self._accounts.get(account)
        if known and row in known.poller.calls:
            known.poller.poll_now(row)
        elif exporter := self.ledger.store.exporter:
            await self.ledger.execute(notify_holders, exporter, [row], POLL_NOW)

    async def poll_open_calls(self, account: str) -> None:
        """Poll the calls of an account that the ledger holds for this exporter."""
        last = 0
        store = self.ledger.store
        while page := await self.ledger.call(store.unfinished, account, last):
            last = page[-1].call.id
            # Some may be new: what was added before an answer was lost.
            if new := {call.labels for call in page}.difference(self.totals.label_sets):
                self.totals.learn(await self.ledger.execute(label_sets_of, new))
            for start in range(0, len(page), BATCH_SIZE):
                self.poll(page[start : start + BATCH_SIZE])
                await asyncio.sleep(0)  # answers and scrapes get their turn

    async def resync(self) -> None:
        """Take up all that the ledger holds of the accounts: an answer of it was lost."""
        for name in list(self._accounts):
            await self.poll_open_calls(name)
        await self.reload_totals()

    async def sync_with_peers(self, leases: LeaseStore, within: float) -> bool:
        """Claim open calls of accounts that are polled here, and follow other exporters.

        Claimed calls are polled within some seconds. Returns whether there may be more to claim.
        """
        look = await self.ledger.call(leases.look, list(self._accounts), self._handled_messages)
        if labels := {call.labels for call in look.claimed}:
            self.totals.learn(await self.ledger.execute(label_sets_of, labels))
        self.poll(look.claimed, within)
        known = set(self._handled_messages)
        new = [notice for notice in look.notices if notice.id not in known]
        closed = {notice.call for notice in new if notice.call and notice.notice == FORGET}
        finished = await self.ledger.execute(ended_of, closed) if closed else {}
        for notice in new:
            account = self._accounts.get(notice.account)
            if account is not None and notice.call is not None:
                if notice.notice == POLL_NOW:
                    account.poller.poll_now(notice.call)
                else:
                    account.poller.remove(notice.call)
                    if call := finished.get(notice.call):
                        self.recent_results.add(self.ledger.to_machine_time(call))
        self._handled_messages = [notice.id for notice in look.notices]
        self._stale |= any(notice.notice == TOTALS for notice in new)
        if self._stale and time.monotonic() >= self._totals_at:
            began = time.monotonic()
            await self.reload_totals()
            self._stale = False
            self._totals_at = time.monotonic() + _TOTALS_SHARE * (time.monotonic() - began)
        return len(look.claimed) == BATCH_SIZE

    async def keep_only(self, source: str, rows: set[int]) -> None:
        """Let go of the calls that a source named before, but for these rows."""
        for call_id in await self.ledger.call(self.ledger.store.keep_only, source, rows):
            self._forget(call_id)

    async def sources(self) -> list[str]:
        """Return every source that names a call."""
        return await self.ledger.execute(list_sources)

    async def cursor(self, source: str, query: str) -> float | None:
        """Return up to when a query of a source has read, if it has."""
        return await self.ledger.execute(read_cursor, source, query)

    async def move_cursor(self, source: str, query: str, read_until: float) -> None:
        """Remember up to when a query of a source has read."""
        await self.ledger.execute(move_cursor, source, query, read_until)

    def _forget(self, call_id: int) -> None:
        for account in self._accounts.values():
            account.poller.remove(call_id)

    def poll(self, added: Iterable[StoredCall], within: float = math.inf) -> None:
        """Poll calls that the ledger holds, those that are not new within some seconds."""
        for account, labels, call in added:
            if known := self._accounts.get(account):
                self.totals.start(account, labels)
                known.poller.add(call, labels, within)
                self._unfrozen += 1
        for known in self._accounts.values():
            known.poller.wake()
        if self._unfrozen >= _FREEZE_EVERY:
            self._unfrozen = 0
            if gc.isenabled():  # else what is being read in is to be looked at neither
                gc.collect()
            gc.freeze()

    def _committed(self, observations: Iterable[Observation], committed: Committed) -> None:
        """Count and show what has become durable."""
        self.totals.add(committed.added.items())
        for subscriber in self._subscribers:
            subscriber(committed)
        # Asked once: a line that is not written costs as much as the rest of this loop.
        debug = _log.is_enabled_for(logging.DEBUG)
        for name, call, found, at in observations:
            account = self._accounts.get(name)
            if call.id in committed.gone:
                if account:
                    account.poller.remove(call.id)
                continue
            if account:
                account.poller.apply_committed(call, found, at)
            if isinstance(found, Finished) and call.id not in committed.canaries:
                ending = found.result, found.status, call.first_watched, at
                finished = FinishedCall(name, call.reference_id, *ending)
                self.recent_results.add(self.ledger.to_machine_time(finished))
            if debug:
                _log.debug(
                    "call updated", account=name, reference_id=call.reference_id, found=found
                )
