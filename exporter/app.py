"""Puts the parts together: starts, reloads, drains and stops them."""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, TypeVar

import structlog

from exporter.account import Account
from exporter.balances import Balances
from exporter.calls import CallbackOutcome
from exporter.canaries.canaries import Canaries
from exporter.config import Config
from exporter.errors import ConfigError, LedgerError, Problem, SourceError
from exporter.home_assistant.integration import HomeAssistant
from exporter.ledger.clock import Clocks
from exporter.ledger.label_limits import LabelLimits
from exporter.ledger.records import CHUNK, Snapshot
from exporter.logs import STANDARD_ERROR
from exporter.metrics.accounts import read_accounts, read_status
from exporter.metrics.calls import read_calls
from exporter.metrics.catalogue import Catalogue
from exporter.notify.dispatcher import Dispatcher
from exporter.notify.home_assistant import NAME as HOME_ASSISTANT
from exporter.notify.home_assistant import home_assistant
from exporter.notify.target import TargetSettings
from exporter.notify.webhook import webhook
from exporter.polling.rate_limiter import RateLimiter
from exporter.polling.stats import AccountStats
from exporter.replicas.replica import Replica
from exporter.source_status import ConfigStatus
from exporter.sources import Sources
from exporter.sources.configuration import ConfigurationSource
from exporter.sources.file_watcher import INTERVAL
from exporter.sources.source import SourceContext
from exporter.supervisor import Supervisor
from exporter.threads import DetachedThreads, ready_threads
from exporter.tracker import CallTracker

R = TypeVar("R")

RETRY_EVERY: Final = 60.0
"""Seconds after which configured calls that there was no room for are tried again."""

RETRY_SOON: Final = 5.0
"""Seconds after which a configuration that the ledger could not take in is tried again."""

# Seconds that reading the configuration may take: with a million calls it takes some 30.
_LOAD_TIMEOUT: Final = 120.0
_PRUNE_EVERY: Final = 3600.0
# Seconds that targets and the MQTT broker have for what is under way when the exporter ends. What a
# target has not taken by then is sent again.
_GOODBYE: Final = 2.0
_log = structlog.get_logger(__name__)


class App:
    """The exporter, without its HTTP server and its signals.

    Args:
        load: reads the configuration; raises `ConfigError`. Called in a thread.
        changed: tells whether it is to be read again, asked twice a second. Called in a thread.
        clocks: reads the clocks of the machine.
    """

    def __init__(
        self,
        load: Callable[[], Config],
        changed: Callable[[], bool] | None = None,
        clocks: Clocks | None = None,
    ) -> None:
        self.load = load
        self._changed = changed
        self.supervisor = Supervisor()
        self.metrics = Catalogue()
        self.config_status = ConfigStatus()
        self.accounts: dict[str, Account] = {}
        self.calls = CallTracker(self.accounts, clocks, self.metrics.commit_duration.observe)
        self.ledger = self.calls.ledger
        self.sources = Sources(self.calls)
        self.balances = Balances(self.accounts, self.metrics, self.supervisor.start)
        self._notify = Dispatcher(self.ledger, self.metrics, self.supervisor.start)
        self.calls.subscribe(lambda committed: self._notify.wake(committed.notify))
        self._canaries = Canaries(self.ledger, self.accounts, self.metrics, self.supervisor.start)
        parts = self.accounts, self.calls, self.metrics, self.supervisor.start, self.balances.known
        on_ready = partial(self._notify.wake, frozenset({HOME_ASSISTANT}))
        self._home_assistant = HomeAssistant(*parts, lambda: self._replica, on_ready)
        self._read_metrics()
        self.config: Config | None = None
        self._loaded: list[Config] = []  # what `open` leaves to `start`
        self._to_load: set[str] = set()  # accounts whose calls are still to come from the ledger
        self._reload_at = math.inf  # when the configuration is to be read again, changed or not
        self._loading = asyncio.Lock()  # one configuration after the other
        self._reloading = asyncio.Lock()  # while calls, files and accounts change
        self._threads = DetachedThreads(_LOAD_TIMEOUT)
        self._replica: Replica | None = None  # where others share the ledger
        self._sharing: list[asyncio.Task[None]] = []
        self._committer: asyncio.Task[None] | None = None
        self.loaded = False

    def _read_metrics(self) -> None:
        """Have the metrics of plain state read at each scrape."""
        metrics = self.metrics
        read_calls(metrics, self.calls.totals)
        read_accounts(metrics, self._account_stats)
        read_status(metrics, lambda: self.sources.statuses, self.config_status)
        metrics.ledger_errors.read_from(lambda: [((), self.ledger.errors)])
        metrics.log_lines_dropped.read_from(lambda: [((), STANDARD_ERROR.dropped)])

    def _account_stats(self) -> Iterator[tuple[str, AccountStats]]:
        for name, account in self.accounts.items():
            account.poller.refresh()
            yield name, account.stats

    # Start, reload, stop.

    async def open(self) -> None:
        """Load the configuration, open the ledger and show its totals.

        Raises:
            ConfigError: with every problem.
            LedgerError: the ledger cannot be used.
        """
        asyncio.get_running_loop().set_default_executor(ready_threads())
        self._loaded.append(config := await self._load())
        await self.ledger.open(config.ledger.url.reveal())
        await self._notify.open()
        if self.ledger.store.shared:
            self._replica = Replica(
                self.ledger, self.calls, self.accounts, self.metrics, config.ledger.heartbeat
            )
        self.ledger.store.limits = _label_limits(config)
        self._show_totals(config, await self.ledger.call(self.ledger.store.snapshot))
        await self.calls.recall()
        if self._replica:
            await self._replica.join()  # from here on it has to beat

    async def start(self) -> None:
        """Take in the configured calls and begin to poll.

        Raises:
            LedgerError: the ledger failed.
        """
        self._committer = self.supervisor.start(self.ledger.run())
        self.supervisor.start(self._prune())
        if self._replica:
            self._sharing.append(self.supervisor.start(self._replica.run()))
            self.supervisor.start(self._replica.reserving.run())
        async with self._reloading:
            await self._apply(self._loaded.pop())
        self.supervisor.start(self._look_for_changes())
        self.supervisor.start(self._canaries.run())
        for source in self.sources:
            self.supervisor.start(source.run())
        self.loaded = True

    async def reload(self) -> None:
        """Load the configuration again and go over to it; on any problem the old one stays.

        Raises:
            ConfigError: with every problem.
            LedgerError: the ledger could not take the calls in.
        """
        async with self._loading:
            await self._reload()

    async def _reload(self) -> None:
        self._reload_at = math.inf
        try:
            with gc_paused():
                config = await self._load()
                async with self._reloading:
                    await self._apply(config)
        except (ConfigError, LedgerError) as error:
            if isinstance(error, LedgerError):
                # Nothing is wrong with it, and no change of it will come.
                self._reload_at = time.monotonic() + RETRY_SOON
            self._not_reloaded(error)
            raise
        _log.info("configuration reloaded", accounts=len(self.accounts), calls=self.calls.count)

    def _not_reloaded(self, error: ConfigError | LedgerError) -> None:
        self.config_status.failed(ConfigurationSource.name, str(error))
        self.sources[ConfigurationSource].not_loaded()
        _log.error("configuration not reloaded", problems=str(error))

    async def _load(self) -> Config:
        """Read the configuration.

        Raises:
            ConfigError: with every problem.
        """
        return await self._read(self.load)

    async def _read(self, work: Callable[[], R]) -> R:
        """Read files of the configuration, on a file system that may not answer."""
        try:
            return await self._threads.run(ConfigurationSource.name, work)
        except SourceError as error:
            self._reload_at = time.monotonic()  # as soon as there is an answer
            message = f"cannot be read: {error}"
            raise ConfigError((Problem("configuration", 0, "", message),)) from None

    async def stop(self) -> None:
        """Give up what others take over, commit what was observed, close everything.

        The parts stop side by side: none that hangs delays another.
        """
        within = self.config.shutdown_timeout if self.config else 1.0
        deadline = time.monotonic() + within
        await asyncio.gather(
            self._leave(within),
            self.balances.stop(),
            self._notify.stop(min(_GOODBYE, within * 0.8)),
            self._drain(within),
        )
        await self.supervisor.stop()
        await asyncio.gather(*(account.close() for account in self.accounts.values()))
        self._threads.close()
        if self._replica:
            self._replica.close()
        await self.ledger.close(max(1.0, deadline - time.monotonic()))

    async def _leave(self, within: float) -> None:
        """Hand the calls over to those that share the ledger."""
        if self._replica:
            for task in self._sharing:
                task.cancel()  # or it would find that it has ended, and begin anew
            await self._replica.leave(within)

    async def _drain(self, within: float) -> None:
        """Wait for requests under way, commit what they brought, and publish the last states."""
        deadline = time.monotonic() + within
        stops = [self._canaries.stop, *(account.stop for account in self.accounts.values())]
        await asyncio.gather(*(stop(within * 0.8) for stop in stops))
        self.ledger.close_soon()
        if self._committer:
            left = max(0.1, deadline - time.monotonic())
            _, late = await asyncio.wait([self._committer], timeout=left)
            if late:
                _log.error("ledger not written in time", problem=self.ledger.problem)
        await self._home_assistant.stop(max(0.1, min(_GOODBYE, deadline - time.monotonic())))

    def not_ready(self) -> list[str]:
        """Return the reasons why the exporter does not do its work; empty when it does."""
        reasons = [] if self.loaded else ["starting: the ledger is being read"]
        problem = self.ledger.problem or (self._replica and self._replica.problem)
        return reasons + ([problem] if problem else [])

    # Going over to a configuration.

    async def _apply(self, config: Config) -> None:
        old = self.config
        if old is not None and old.ledger.url != config.ledger.url:
            message = "cannot change while the exporter runs; restart it"
            raise ConfigError((Problem("configuration", 0, "ledger.url", message),))
        watch = config.watch
        # Not held any longer than they are added: they would be half of the memory.
        config = config.model_copy(update={"watch": watch.model_copy(update={"calls": ()})})
        # Whatever fails from here on, calls that the ledger has added are watched.
        self.calls.max_calls = config.watch.max_calls
        self.ledger.store.memory = config.memory
        self.ledger.store.limits = _label_limits(config)
        # At the start, `open` has shown them.
        if old is not None and _shown(old) != _shown(config):
            store, replica = self.ledger.store, self._replica
            snapshot = replica.totals.catch_up() if replica else self.ledger.call(store.snapshot)
            self._show_totals(config, await snapshot)
        context = SourceContext(
            [account.name for account in config.accounts],
            watch.labels,
            config.memory,
            any(account.callback_token for account in config.accounts),
        )
        await self.sources.configure(watch, context)
        del watch
        if self.sources[ConfigurationSource].refused and self._changed is not None:
            # Calls that were removed just now may have made room.
            self._reload_at = time.monotonic() + RETRY_EVERY
        if self._replica:
            self._replica.heartbeat = config.ledger.heartbeat
        self.config = config
        self._notify.configure(self._targets(config), config.shutdown_timeout)
        self._change_accounts(config)
        self.balances.configure(config)
        self._canaries.configure(config)
        for name in sorted(self._to_load):
            self.calls.teach(name)
            async for _ in self.calls.load(name):
                pass
            self._to_load.discard(name)
        self.config_status.loaded(ConfigurationSource.name)
        self.config_status.loaded_at = time.time()
        self.sources[ConfigurationSource].loaded()
        self._home_assistant.configure(config.home_assistant)

    def _targets(self, config: Config) -> list[TargetSettings]:
        """Return where finished calls are notified to."""
        targets = [webhook(target, config.authorities) for target in config.notify]
        if config.home_assistant:
            targets.append(home_assistant(config.home_assistant, self._home_assistant))
        return targets

    def _change_accounts(self, config: Config) -> None:
        """Start, change and end accounts."""
        wanted = {account.name: account for account in config.accounts}
        for name in self.accounts.keys() - wanted.keys():
            account = self.accounts.pop(name)
            self.metrics.remove("account", name)
            self._to_load.discard(name)
            self.supervisor.start(self._retire(account, config.polling.timeout))
        for name, wish in wanted.items():
            if known := self.accounts.get(name):
                if rest := known.change(config, wish):
                    self.supervisor.start(rest)
                continue
            limit = partial(self._replica.reserving.turns, name) if self._replica else RateLimiter
            observe, now = partial(self.ledger.observe, name), self.ledger.clock.now
            account = Account(config, wish, observe, self.supervisor.fail, now, limit)
            self.accounts[name] = account
            for outcome in CallbackOutcome:
                self.metrics.callbacks.labels(name, outcome.value)
            self._to_load.add(name)

    async def _retire(self, account: Account, within: float) -> None:
        try:
            await account.stop(within)
            if self._replica:
                await self._replica.give_up_account(account.poller.account)
        finally:
            await account.close()

    def _show_totals(self, config: Config, snapshot: Snapshot) -> None:
        names = {account.name for account in config.accounts}
        totals = self.calls.totals
        totals.names = config.watch.labels
        totals.hide(totals.accounts - names)
        totals.show(names, snapshot)
        if self._replica:
            self._replica.totals.begin_with(snapshot)

    # In the background.

    async def _look_for_changes(self) -> None:
        changed = self._changed
        while True:
            await asyncio.sleep(INTERVAL)
            async with self._loading:
                if self._threads.hangs(ConfigurationSource.name):
                    continue  # as was told
                new = time.monotonic() >= self._reload_at
                if not new and changed is not None:
                    try:
                        new = await self._read(changed)
                    except ConfigError as error:
                        self._not_reloaded(error)
                if new:
                    with suppress(ConfigError, LedgerError):  # logged and counted there
                        await self._reload()

    async def _prune(self) -> None:
        while True:
            await asyncio.sleep(_PRUNE_EVERY)
            memory = self.config.memory if self.config else math.inf
            before = self.ledger.clock.now() - memory
            try:
                while await self.ledger.call(self.ledger.store.prune, before) == CHUNK:
                    pass
                await self.ledger.call(self.ledger.store.prune_labels)
                await self._notify.prune()
                await self._canaries.prune(time.time() - memory)
                if self._replica:
                    await self._replica.tidy()
            except LedgerError as error:
                _log.warning("old calls not pruned", problem=str(error))


def _label_limits(config: Config) -> LabelLimits:
    watch = config.watch
    return LabelLimits(watch.labels, watch.max_label_values, watch.max_label_sets)


def _shown(config: Config) -> tuple[object, ...]:
    """Return what the metrics of finished calls hang on."""
    names = frozenset(account.name for account in config.accounts)
    return names, _label_limits(config)


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause Python's cycle collector while many calls are created.

    Each collection would block the event loop for a tenth of a second, and free nothing.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
