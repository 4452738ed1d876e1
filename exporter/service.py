"""Puts the parts together: starts, reloads, drains and stops them."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import structlog

from exporter.account import Account, AccountStatus
from exporter.calls import Finished, ReferenceId, verdict
from exporter.config import Config
from exporter.errors import ConfigError, LedgerError, Problem
from exporter.esms.answers import Answer
from exporter.ledger.ledger import Ledger
from exporter.ledger.records import (
    CHUNK,
    CallRecord,
    Committed,
    Count,
    Labels,
    NewCall,
    Observation,
    Snapshot,
    StoredCall,
    Tally,
)
from exporter.metrics.calls import CallMetrics
from exporter.metrics.catalogue import Catalogue
from exporter.metrics.families import Family
from exporter.sources.api import SOURCE as API_SOURCE
from exporter.sources.api import Inbox
from exporter.sources.callback import SOURCE as CALLBACK_SOURCE
from exporter.sources.changes import LOOK_EVERY
from exporter.sources.files import CallFiles, Settings
from exporter.sources.sql import Names, SqlSources

CONFIG_SOURCE: Final = "config"
"""The name of the configuration as a watch source."""

_PRUNE_EVERY: Final = 3600.0
_log = structlog.get_logger(__name__)


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Keep Python's collector of cycles from looking at every call again while many are made.

    It would stand in the event loop's way for a tenth of a second each time, and find nothing.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Service:
    """The exporter, without its HTTP server and its signals.

    Args:
        load: reads the configuration; raises `ConfigError`. Called in a thread.
        changed: tells whether it is to be read again, asked twice a second. Called in a thread.
    """

    def __init__(
        self, load: Callable[[], Config], changed: Callable[[], bool] | None = None
    ) -> None:
        self.load = load
        self._changed = changed
        self.metrics = Catalogue()
        self.call_metrics = CallMetrics((), (), 1)
        self.accounts: dict[str, Account] = {}
        self.ledger = Ledger(self.metrics, self._committed)
        self.files = CallFiles(self, self.metrics)
        self.inbox = Inbox(self._push)
        self.sql = SqlSources(self, self.metrics, self._in_background)
        self.config: Config | None = None
        self._max_calls: float = math.inf
        self._loaded: list[Config] = []  # what `open` leaves to `start`
        self._reloading = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()
        self._committer: asyncio.Task[None] | None = None
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.loaded = False

    # Start, reload, stop.

    async def open(self) -> None:
        """Load the configuration, open the ledger and show its totals.

        Raises:
            ConfigError: with every problem.
            LedgerError: the ledger cannot be used.
        """
        config = await asyncio.to_thread(self.load)
        self._loaded.append(config)
        await self.ledger.open(config.ledger.url)
        self._show_totals(config, await self.ledger.call(self.ledger.store.snapshot))

    async def start(self) -> None:
        """Take in the configured calls and begin to poll.

        Raises:
            LedgerError: the ledger failed.
        """
        self._committer = self._in_background(self.ledger.run())
        self._in_background(self._prune())
        async with self._reloading:
            await self._apply(self._loaded.pop())
        self._in_background(self._look_for_changes())
        self._in_background(self.inbox.run())
        self.loaded = True

    async def reload(self) -> None:
        """Load the configuration again and go over to it; on any problem the old one stays.

        Raises:
            ConfigError: with every problem.
            LedgerError: the ledger could not take the calls in.
        """
        async with self._reloading:
            await self._reload()

    async def _reload(self) -> None:
        try:
            with collector_at_rest():
                await self._apply(await asyncio.to_thread(self.load))
        except (ConfigError, LedgerError) as error:
            self.metrics.reload_successful.labels().value = 0.0
            self.metrics.source_errors.labels(CONFIG_SOURCE).value += 1
            _log.error("configuration not reloaded", problems=str(error))
            raise
        _log.info("configuration reloaded", accounts=len(self.accounts), calls=self.watched)

    async def stop(self) -> None:
        """Wait for requests under way, commit what was observed, close everything."""
        within = self.config.shutdown_timeout if self.config else 1.0
        deadline = time.monotonic() + within
        await asyncio.gather(*(account.stop(within * 0.8) for account in self.accounts.values()))
        self.ledger.close_soon()
        if self._committer:
            left = max(0.1, deadline - time.monotonic())
            _, late = await asyncio.wait([self._committer], timeout=left)
            if late:
                _log.error("ledger not written in time", problem=self.ledger.problem)
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.gather(*(account.close() for account in self.accounts.values()))
        await self.ledger.close()

    def families(self) -> Iterator[Family[Any]]:  # Any: of values or of buckets
        """Yield every metric as it stands."""
        for account in self.accounts.values():
            account.poller.refresh()
        yield from self.call_metrics.families()
        yield from self.metrics.families()

    def not_ready(self) -> list[str]:
        """Return the reasons why the exporter does not do its work; empty when it does."""
        reasons = [] if self.loaded else ["starting: the ledger is being read"]
        return reasons + ([self.ledger.problem] if self.ledger.problem else [])

    @property
    def watched(self) -> int:
        """How many calls are polled."""
        return sum(len(account.poller.calls) for account in self.accounts.values())

    def status(self) -> list[AccountStatus]:
        """Return a line on each account."""
        return [account.status for account in self.accounts.values()]

    # Watching.

    async def watch(self, source: str | None, calls: Iterable[NewCall]) -> Tally:
        """Take calls in and poll the new ones; see `Store.watch`.

        Raises:
            LedgerError: the ledger failed; what it took in before is watched.
        """
        added, rows, refused = 0, set[int](), 0
        async for taken in self.ledger.watch(source, calls, self._max_calls):
            rows |= taken.rows
            refused += taken.refused
            added += len(taken.added)
            self._take_up(taken.added, taken.label_sets)
        return Tally(added, rows, refused)

    async def _push(self, requests: Sequence[Sequence[NewCall]]) -> Sequence[Count | None]:
        store = self.ledger.store
        pushed = await self.ledger.call(store.push, requests, time.time(), self._max_calls)
        self._take_up(pushed.added, pushed.label_sets)
        return pushed.counts

    async def delete(self, row: int) -> bool:
        """Stop watching a call, by its row, without counting it; returns whether it was watched.

        Raises:
            LedgerError: the ledger failed.
        """
        deleted = await self.ledger.call(self.ledger.store.delete, row)
        if deleted:
            self._forget(row)
        return deleted

    async def find(self, account: str, name: ReferenceId) -> CallRecord | None:
        """Return a call, if it is known.

        Raises:
            LedgerError: the ledger failed.
        """
        return await self.ledger.call(self.ledger.store.find, account, name)

    async def push(self, call: NewCall) -> None:
        """Watch a call; returns once that is durable.

        Raises:
            LedgerError: the ledger failed.
            NoRoomError: there are too many calls.
        """
        await self.inbox.put([call])

    async def price(self, row: int, price: float) -> None:
        """Keep what a call has cost, in VND; returns once that is durable.

        Raises:
            LedgerError: the ledger failed.
        """
        added = await self.ledger.call(self.ledger.store.set_price, row, price)
        self.call_metrics.add(added.items())

    async def accept(self, account: str, row: int, answer: Answer) -> bool:
        """Finish a call, if that is what an answer means; returns once that is durable.

        Raises:
            LedgerError: the ledger failed.
        """
        poller = self.accounts[account].poller
        if (call := poller.calls.get(row)) is None:
            return False
        now = time.time()
        decided = verdict(call, answer, now, poller.patience)
        if not isinstance(decided, Finished):
            return False
        observed = [Observation(account, call, decided, now)]
        self._committed(observed, await self.ledger.call(self.ledger.store.commit, observed))
        return True

    def hasten(self, account: str, row: int) -> None:
        """Ask the provider about a call now."""
        if known := self.accounts.get(account):
            known.poller.hasten(row)

    async def keep_only(self, source: str, rows: set[int]) -> None:
        """Let go of the calls that a source named before, but for these rows.

        Raises:
            LedgerError: the ledger failed.
        """
        for call_id in await self.ledger.call(self.ledger.store.keep_only, source, rows):
            self._forget(call_id)

    async def sources(self) -> list[str]:
        """Return every source that names a call.

        Raises:
            LedgerError: the ledger failed.
        """
        return await self.ledger.call(self.ledger.store.sources)

    def _forget(self, call_id: int) -> None:
        for account in self.accounts.values():
            account.poller.forget(call_id)

    def _take_up(self, added: Iterable[StoredCall], label_sets: Mapping[int, Labels]) -> None:
        for row, labels in sorted(label_sets.items()):
            self.call_metrics.learn(row, labels)
        self._poll(added)

    def _poll(self, added: Iterable[StoredCall]) -> None:
        for account, labels, call in added:
            if known := self.accounts.get(account):
                self.call_metrics.start(account, labels)
                known.poller.watch(call)
        for known in self.accounts.values():
            known.poller.wake()

    def _committed(self, observations: Iterable[Observation], committed: Committed) -> None:
        """Count and show what has become durable."""
        self.call_metrics.add(committed.added.items())
        # Asked once: a line that is not written costs as much as the rest of this loop.
        debug = _log.is_enabled_for(logging.DEBUG)
        for name, call, found, at in observations:
            if (account := self.accounts.get(name)) is None:
                continue
            if call.id in committed.gone:
                account.poller.forget(call.id)
            else:
                account.poller.settle(call, found, at)
                if debug:
                    _log.debug(
                        "observed", account=name, reference_id=call.reference_id, found=found
                    )

    # Going over to a configuration.

    async def _apply(self, config: Config) -> None:
        old = self.config
        if old is not None and old.ledger.url != config.ledger.url:
            message = "cannot change while the exporter runs; restart it"
            raise ConfigError((Problem("configuration", 0, "ledger.url", message),))
        calls = (
            NewCall(call.account, call.reference_id, call.labels) for call in config.watch.calls
        )
        # Nobody holds them any longer than `calls` does: they would be half of the memory.
        config = config.model_copy(update={"watch": config.watch.model_copy(update={"calls": ()})})
        # Whatever fails from here on, what the ledger has taken in is watched.
        self._max_calls = config.watch.max_calls
        taken = await self.watch(CONFIG_SOURCE, calls)
        if taken.refused:
            _log.warning(
                "configured calls are beyond watch.max_calls, and not watched", calls=taken.refused
            )
        # At the start, `open` has shown them.
        if old is not None and _shown(old) != _shown(config):
            self._show_totals(config, await self.ledger.call(self.ledger.store.snapshot))
        # New ones first, so that a call that moves from one to the other is watched all the time.
        names = [account.name for account in config.accounts]
        await self.files.configure(Settings(config.watch.files, names, config.watch.labels))
        if not taken.refused:
            await self.keep_only(CONFIG_SOURCE, taken.rows)
        self.config = config
        for name in self._change_accounts(config):
            await self._load_calls(name)
        self.metrics.reload_successful.labels().value = 1.0
        self.metrics.reload_timestamp.labels().value = time.time()
        self.metrics.source_errors.labels(CONFIG_SOURCE)
        self.metrics.source_last_success.labels(CONFIG_SOURCE).value = time.time()
        self.metrics.show_source(API_SOURCE, shown=bool(config.watch.api.tokens))
        self.sql.configure(config.watch.sql, Names(names, config.watch.labels))
        called_back = any(account.callback_token for account in config.accounts)
        self.metrics.show_source(CALLBACK_SOURCE, shown=called_back)

    def _change_accounts(self, config: Config) -> list[str]:
        """Start, change and end accounts; returns those that are new."""
        wanted = {account.name: account for account in config.accounts}
        for name in self.accounts.keys() - wanted.keys():
            account = self.accounts.pop(name)
            self.metrics.remove_account(name)
            self._in_background(self._retire(account, config.polling.timeout))
        fresh = []
        for name, wish in wanted.items():
            if known := self.accounts.get(name):
                if rest := known.change(config, wish):
                    self._in_background(rest)
                continue
            metrics = self.metrics.add_account(name)
            account = Account(config, wish, metrics, partial(self.ledger.observe, name))
            self._in_background(account.failure())
            self.accounts[name] = account
            fresh.append(name)
        return fresh

    async def _retire(self, account: Account, within: float) -> None:
        try:
            await account.stop(within)
        finally:
            await account.close()

    async def _load_calls(self, account: str) -> None:
        last = 0
        while chunk := await self.ledger.call(self.ledger.store.unfinished, account, last):
            last = chunk[-1].call.id
            self._poll(chunk)

    def _show_totals(self, config: Config, snapshot: Snapshot) -> None:
        metrics = CallMetrics(
            (account.name for account in config.accounts),
            config.watch.labels,
            config.watch.max_label_values,
        )
        for row, labels in snapshot.label_sets.items():
            metrics.learn(row, labels)
        metrics.take_over(self.call_metrics)
        metrics.add(snapshot.totals.items())
        self.call_metrics = metrics

    # In the background.

    def _in_background(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background_ended)
        return task

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self.failed.done():
            # A part that is gone would be missed by nobody: better that the process ends.
            self.failed.set_exception(error)

    async def _look_for_changes(self) -> None:
        changed = self._changed
        while True:
            await asyncio.sleep(LOOK_EVERY)
            async with self._reloading:
                try:
                    if changed is not None and await asyncio.to_thread(changed):
                        await self._reload()
                    else:
                        await self.files.look()
                except (ConfigError, LedgerError):
                    continue  # logged and counted where it happened

    async def _prune(self) -> None:
        while True:
            await asyncio.sleep(_PRUNE_EVERY)
            before = time.time() - self.config.ledger.keep_finished if self.config else 0.0
            try:
                while await self.ledger.call(self.ledger.store.prune, before) == CHUNK:
                    pass
            except LedgerError as error:
                _log.warning("old calls not pruned", problem=str(error))


def _shown(config: Config) -> tuple[object, ...]:
    """Return what the metrics of finished calls hang on."""
    names = frozenset(account.name for account in config.accounts)
    return names, config.watch.labels, config.watch.max_label_values
