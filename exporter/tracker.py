"""Adds, removes and polls the watched calls, and updates their totals and recent results."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

import structlog

from exporter.account import Account
from exporter.call_totals import CallTotals
from exporter.calls import (
    WATCHED,
    CallbackOutcome,
    Finished,
    GiveUpPolicy,
    Status,
    WatchedCall,
    verdict,
)
from exporter.esms.answers import Answer
from exporter.ids import Kind, ReferenceId
from exporter.ledger.calls import (
    find_call,
    finished_calls,
    label_sets_of,
    list_sources,
    move_cursor,
    read_cursor,
    recent_calls,
)
from exporter.ledger.labels import NO_LIMITS
from exporter.ledger.leases import (
    FORGET,
    POLL_NOW,
    TOTALS,
    claim_and_read_notices,
    notify_holders,
    wait_for_added_calls,
)
from exporter.ledger.ledger import Ledger
from exporter.ledger.store import StoreSettings
from exporter.ledger.types import (
    BATCH_SIZE,
    CallRecord,
    Committed,
    Count,
    FinishedCall,
    InsertResult,
    NewCall,
    Observation,
    StoredCall,
)
from exporter.polling.intervals import WINDOW
from exporter.recent_results import RecentResults

# Added calls between runs of `gc.freeze`. Otherwise the garbage collector would examine all calls
# again and again, and block the event loop for 0.1 s with a million calls.
_FREEZE_EVERY: Final = 50_000

# Pause between reloads of the totals, as a multiple of the time that a reload takes.
_TOTALS_SHARE: Final = 10.0

_log = structlog.get_logger(__name__)


class CallTracker:
    """Connects the sources, the ledger, the pollers and the metrics of finished calls.

    Every change of a call is written to the ledger before it is shown. Methods that use the ledger
    raise `LedgerError` if it fails.

    Args:
        accounts: polled accounts: live mapping, shared by reference.
    """

    def __init__(self, ledger: Ledger, accounts: Mapping[str, Account]) -> None:
        self._ledger, self._accounts = ledger, accounts
        ledger.subscribe(self._apply_committed)
        self.totals = CallTotals()
        self.recent_results = RecentResults()
        # Recent calls by account and kind, for `learn_recent_durations`.
        self._past: dict[str, defaultdict[str, deque[FinishedCall]]] = {}
        self._limits = NO_LIMITS
        self._unfrozen = 0
        self._handled_notices: list[int] = []  # notices of other exporters
        self._stale, self._totals_at = False, -math.inf

    async def configure(self, settings: StoreSettings) -> None:
        self._ledger.store.configure(settings)
        self.totals.use_exemplars(enabled=settings.exemplars)
        if settings.limits != self._limits:
            await self.reload_totals(settings.limits.names)
            self._limits = settings.limits

    @property
    def count(self) -> int:
        """The number of polled calls."""
        return sum(len(account.poller.calls) for account in self._accounts.values())

    async def load_totals(self, accounts: Collection[str]) -> None:
        """Load the totals and recent results of accounts before they are polled."""
        since, ahead = self.recent_results.needed_since(time.time()), self._ledger.clock.ahead
        finished, since = await self._ledger.execute(recent_calls, since, accounts, ahead)
        # Calls that finish before `snapshot` are added to the results, and included in its totals.
        self.recent_results.load(accounts, finished, since)
        for name in accounts:
            self._past[name] = defaultdict(lambda: deque(maxlen=WINDOW))
        for call in finished:
            self._past[call.account][call.kind].append(call)
        snapshot = await self._ledger.execute(self._ledger.store.snapshot, accounts)
        self.totals.show(accounts, snapshot)

    async def reload_totals(self, names: tuple[str, ...] | None = None) -> None:
        """Reload the totals of all shown accounts from the ledger.

        Args:
            names: new names of the shown labels; None to keep them.
        """
        accounts = set(self.totals.accounts)
        snapshot = await self._ledger.execute(self._ledger.store.snapshot, accounts)
        accounts &= self.totals.accounts
        if names is not None:
            self.totals.configure(names)
        self.totals.show(accounts, snapshot)

    def drop_totals(self, account: str) -> None:
        """Remove the totals and recent results of an account that is no longer polled here."""
        self.totals.hide(account)
        self.recent_results.forget(account)
        self._past.pop(account, None)

    def learn_recent_durations(self, account: str) -> None:
        """Train the poll intervals of an account with its recent results."""
        intervals = self._accounts[account].poller.intervals
        for kind, past in self._past.pop(account, {}).items():
            intervals[Kind(kind)].learn_past(
                (call.finished_at - call.first_watched, call.status != Status.EXPIRED)
                for call in past
                if call.status != Status.NOT_FOUND  # the provider does not know its duration
            )

    # For sources.

    async def add(
        self, source: str | None, calls: Iterable[NewCall]
    ) -> tuple[set[int], Counter[str]]:
        """Add any number of calls in batches, and poll the new ones; see `Store.watch`.

        Return the rows of all accepted calls, and the number of refused ones by account. On
        cancellation, the batch that the ledger is adding is still polled.

        Raises:
            LedgerError: the ledger failed; the batches before are watched.
        """
        rows, refused = set[int](), Counter[str]()
        rest = iter(calls)
        while batch := list(islice(rest, BATCH_SIZE)):
            # The ledger's thread cannot be interrupted: calls that it commits must be polled.
            inserted = await asyncio.shield(self._insert(self._ledger.store.watch, source, batch))
            rows |= inserted.rows
            refused += inserted.refused
        return rows, refused

    async def push(self, requests: Sequence[Sequence[NewCall]]) -> Sequence[Count | str]:
        """Add the calls of requests; see `Store.push`."""
        return (await self._insert(self._ledger.store.push, requests)).counts

    async def _insert(self, insert: Callable[..., InsertResult], *args: object) -> InsertResult:
        inserted = await self._ledger.call(insert, *args, self._ledger.clock.now())
        self.totals.learn(inserted.label_sets)
        self.totals.change_series(inserted.series)
        self.poll(inserted.added)
        return inserted

    async def delete(self, row: int) -> bool:
        """Stop watching a call without counting it; return whether it was open."""
        now = self._ledger.clock.now()
        deleted = await self._ledger.call(self._ledger.store.delete, row, now)
        # In any case: this may be a retry of a deletion whose answer was lost.
        self._forget(row)
        return deleted

    async def find(self, account: str, name: ReferenceId) -> CallRecord | None:
        """Return a call; None if the ledger does not hold it."""
        return await self._ledger.execute(find_call, account, name)

    async def record_callback(
        self, row: int, outcome: CallbackOutcome, price: float | None
    ) -> None:
        """Write a callback that did not finish its call; see `Store.record_callback`."""
        store = self._ledger.store
        if price is not None or store.settings.history:
            added = await self._ledger.execute(store.record_callback, row, outcome, price)
            self.totals.add(added.items())

    async def mark_pushed(self, row: int) -> bool:
        """Keep a call even if no source names it; return whether it exists."""
        return await self._ledger.execute(self._ledger.store.mark_pushed, row)

    async def apply_callback(
        self, call: CallRecord, answer: Answer, price: float | None = None
    ) -> CallbackOutcome:
        """Finish a call if the answer contains its result; return once that is durable.

        `price`, in VND, is stored if the answer finishes the call and contains no price.

        Returns:
            `accepted`; `repeated` if the call had finished before; `hint` if the answer does not
            finish the call, or its account is not configured.
        """
        account, name = self._accounts.get(call.account), ReferenceId(call.reference_id)
        watched = account.poller.calls.get(call.id) if account else None
        if watched is None and (account or self._ledger.store.exporter):
            # Another exporter may poll it, or it may belong to a canary.
            watched = WATCHED[call.kind](call.id, name, call.first_watched)
        if watched is None:
            return await self._not_accepted(call.account, name)
        now = self._ledger.clock.now()
        # Only the exporter that polls the account knows when to give up.
        decided = verdict(
            watched, answer, now, account.poller.give_up if account else GiveUpPolicy()
        )
        if not isinstance(decided, Finished):
            return CallbackOutcome.HINT
        if decided.price is None:
            decided = replace(decided, price=price)
        observed = Observation(call.account, watched, decided, now, from_callback=True)
        committed = await self._ledger.commit([observed])
        if call.id in committed.ignored:
            return await self._not_accepted(call.account, name)
        if account:
            account.poller.learn(watched, decided, now, notified=True)
        return CallbackOutcome.ACCEPTED

    async def _not_accepted(self, account: str, name: ReferenceId) -> CallbackOutcome:
        known = await self.find(account, name)
        ended = known is not None and known.result is not None  # by a poll, before the callback
        return CallbackOutcome.REPEATED if ended else CallbackOutcome.HINT

    async def poll_now(self, account: str, row: int) -> None:
        """Poll a call now, or notify the exporter that polls its account."""
        known = self._accounts.get(account)
        if known and row in known.poller.calls:
            known.poller.poll_now(row)
        elif exporter := self._ledger.store.exporter:
            await self._ledger.execute(notify_holders, exporter, [row], POLL_NOW)

    async def poll_open_calls(self, account: str) -> None:
        """Poll all open calls of an account in the ledger."""
        last = 0
        # Look up the store for each page: the ledger may be closed meanwhile.
        while page := await self._ledger.call(self._ledger.store.unfinished, account, last):
            last = page[-1].call.id
            # Some may be unknown: calls added by a commit whose answer was lost.
            if new := {call.label_set for _, call in page}.difference(self.totals.label_sets):
                self.totals.learn(await self._ledger.execute(label_sets_of, new))
            for start in range(0, len(page), BATCH_SIZE):
                self.poll(page[start : start + BATCH_SIZE])
                await asyncio.sleep(0)  # let other tasks run

    async def resync(self) -> None:
        """Read all open calls and totals again, after a commit whose answer was lost."""
        names = list(self._accounts)
        await self._ledger.execute(wait_for_added_calls, names)
        for name in names:
            await self.poll_open_calls(name)
        await self.reload_totals()

    async def sync_with_peers(self, within: float) -> bool:
        """Claim open calls of the polled accounts, and apply the notices of other exporters.

        Claimed calls are polled within `within` seconds. Return whether there may be more to claim.
        """
        me, held = self._ledger.store.exporter or "", dict(self._ledger.store.epochs)
        handled = self._handled_notices  # deleted before others are read
        claimed, notices = await self._ledger.execute(claim_and_read_notices, me, held, handled)
        if labels := {call.label_set for _, call in claimed}:
            self.totals.learn(await self._ledger.execute(label_sets_of, labels))
        self.poll(claimed, within)
        closed = {notice.call for notice in notices if notice.call and notice.notice == FORGET}
        ahead = self._ledger.clock.ahead
        finished = await self._ledger.execute(finished_calls, closed, ahead) if closed else {}
        for notice in notices:
            account = self._accounts.get(notice.account)
            if account is not None and notice.call is not None:
                if notice.notice == POLL_NOW:
                    account.poller.poll_now(notice.call)
                else:
                    account.poller.remove(notice.call)
                    if call := finished.get(notice.call):
                        self.recent_results.add(call)
        self._handled_notices = [notice.id for notice in notices]
        self._stale |= any(notice.notice == TOTALS for notice in notices)
        if self._stale and time.monotonic() >= self._totals_at:
            began = time.monotonic()
            await self.reload_totals()
            self._stale = False
            self._totals_at = time.monotonic() + _TOTALS_SHARE * (time.monotonic() - began)
        return len(claimed) == BATCH_SIZE

    async def keep_only(self, source: str, rows: set[int]) -> None:
        """Remove the calls of a source except these rows; see `Store.keep_only`."""
        for call_id in await self._ledger.call(self._ledger.store.keep_only, source, rows):
            self._forget(call_id)

    async def sources(self) -> list[str]:
        return await self._ledger.execute(list_sources)

    async def cursor(self, source: str, query: str) -> float | None:
        """Return the time up to which a query of a source has read; see `read_cursor`."""
        return await self._ledger.execute(read_cursor, source, query)

    async def move_cursor(self, source: str, query: str, read_until: float) -> None:
        """Store the time up to which a query of a source has read."""
        await self._ledger.execute(move_cursor, source, query, read_until)

    def _forget(self, call_id: int) -> None:
        for account in self._accounts.values():
            account.poller.remove(call_id)

    def poll(self, added: Iterable[StoredCall], within: float = math.inf) -> None:
        """Poll calls of the ledger; calls that are not new are polled within `within` seconds."""
        by_account = defaultdict[str, list[WatchedCall]](list)
        for account, call in added:
            if account in self._accounts:
                self.totals.start(account, call.label_set, call.kind)
                by_account[account].append(call)
        for account, calls in by_account.items():
            self._accounts[account].poller.add(calls, within)
            self._unfrozen += len(calls)
        for known in self._accounts.values():
            known.poller.wake()
        if self._unfrozen >= _FREEZE_EVERY:
            self._unfrozen = 0
            if gc.isenabled():  # not within `gc_paused`
                gc.collect()
            gc.freeze()

    def _apply_committed(self, observations: Iterable[Observation], committed: Committed) -> None:
        """Apply a committed group of observations to totals, pollers and recent results."""
        self.totals.add(committed.added.items())
        self.totals.keep_newest(committed.newest)
        for finished in committed.finished:
            self.recent_results.add(finished)
        # Checked once: a suppressed log call costs as much as the rest of this loop.
        debug = _log.is_enabled_for(logging.DEBUG)
        for name, call, found, at, _ in observations:
            account = self._accounts.get(name)
            if call.id in committed.ignored:
                if account:
                    account.poller.remove(call.id)
                continue
            if account:
                account.poller.apply_committed(call, found, at)
            if debug:
                _log.debug(
                    "call updated", account=name, reference_id=call.reference_id, found=found
                )
