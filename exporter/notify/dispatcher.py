"""Delivers notifications of finished calls: claims, sends, retries, gives up."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, TypeAlias

import structlog

from exporter.backoff import ExponentialBackoff
from exporter.errors import LedgerError
from exporter.ledger.ledger import Ledger
from exporter.ledger.outbox import Claim, DeliveryAction, DeliveryResult, Notification
from exporter.ledger.types import BATCH_SIZE
from exporter.metrics.catalogue import Catalogue
from exporter.notify.breaker import MAX_PAUSE, CircuitBreaker, State
from exporter.notify.target import Delivery, DeliveryOutcome, TargetSettings

_GATHER: Final = 0.02
"""Seconds that results gather before they are recorded: a commit has to reach the disk."""

_LOOK_INTERVAL: Final = 5.0
"""Seconds between looks for what another exporter left, a clock made due, or is overdue."""

_COUNT_INTERVAL: Final = 10.0
_COUNT_SHARE: Final = 0.01
"""The share of the time that may be spent on counting what is pending."""

_LEDGER_RETRY: Final = 2.0

_RETRY_SHARE: Final = 0.25
"""Of the connections that retries may have, and of the time where there are fewer than four."""

_LEASE: Final = 30.0
"""Seconds, beside its time-out, after which an attempt counts as lost with its exporter."""

_LAST_ATTEMPT: Final = 30.0
"""Seconds that a notification has for its last attempt, once its time is over."""

_RETRIES: Final = ExponentialBackoff(5.0, MAX_PAUSE, jitter=0.25)

_LOG_INTERVAL: Final = 60.0
"""Seconds after which the failure of a single notification is logged again."""

Spawn: TypeAlias = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]
"""Runs work in the background; work that fails ends the exporter."""

_log = structlog.get_logger(__name__)


class TargetStatus(NamedTuple):
    """A target, as the status page shows it; times are Unix times, 0 for none.

    Attributes:
        pending: notifications that are still to be sent.
        oldest: when the call finished whose notification has been pending longest.
        failure: when an attempt last failed, and how.
    """

    name: str
    pending: int
    oldest: float
    paused: bool
    failure: tuple[float, Delivery] | None = None


class Dispatcher:
    """Delivers notifications to all targets; none waits for another.

    Args:
        ledger: to be open before `open`.
        metrics: where it is counted.
        spawn: see `Spawn`.
    """

    def __init__(self, ledger: Ledger, metrics: Catalogue, spawn: Spawn) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._spawn = spawn
        self._workers: dict[str, TargetWorker] = {}

    async def open(self) -> None:
        """Make due what a killed process had claimed."""
        await self._ledger.execute(self._ledger.store.outbox.release_all)

    def configure(self, targets: Sequence[TargetSettings], timeout: float) -> None:
        """Change the targets; those that are as before are not interrupted.

        What is pending for a removed target stays in the ledger until its time is over, and is sent
        if the target comes back.

        Args:
            targets: all that there are.
            timeout: seconds for which attempts at those that change may go on.
        """
        self._ledger.store.outbox.set_routes([settings.route for settings in targets])
        wanted = {settings.name: settings for settings in targets}
        for name, worker in list(self._workers.items()):
            if worker.settings != wanted.get(name):
                del self._workers[name]
                self._spawn(worker.stop(timeout))
                if name not in wanted:
                    self._metrics.remove("target", name)
        for name in wanted.keys() - self._workers.keys():
            parts = self._ledger, self._metrics, self._spawn
            self._workers[name] = TargetWorker(wanted[name], *parts)

    @property
    def statuses(self) -> list[TargetStatus]:
        """The state of every target, by name."""
        return sorted(worker.status for worker in self._workers.values())

    def wake(self, targets: frozenset[str]) -> None:
        """Send what was just written for these targets, or can be delivered again."""
        for name in targets & self._workers.keys():
            self._workers[name].wake()

    async def stop(self, timeout: float) -> None:
        """Stop; attempts under way may end within some seconds, the rest stays in the ledger."""
        await asyncio.gather(*(worker.stop(timeout) for worker in self._workers.values()))

    async def prune(self) -> None:
        """Delete overdue notifications of removed targets."""
        pruned = BATCH_SIZE
        while pruned == BATCH_SIZE:
            prune = self._ledger.store.outbox.prune
            pruned = await self._ledger.execute(prune, list(self._workers))
            if pruned:
                _log.warning("notifications of removed targets dropped", count=pruned)


class TargetMetrics:
    """The series of one target, each looked up once."""

    def __init__(self, catalogue: Catalogue, target: str) -> None:
        self.delivered = catalogue.notifications.labels(target, "delivered")
        self.gave_up = catalogue.notifications.labels(target, "gave_up")
        self.requests = {
            outcome: catalogue.notification_requests.labels(target, outcome.value)
            for outcome in DeliveryOutcome
        }
        self.duration = catalogue.notification_duration.labels(target)
        self.pending = catalogue.notifications_pending.labels(target)
        self.oldest = catalogue.notifications_oldest.labels(target)


class TargetWorker:
    """Delivers one target's notifications, until `stop`.

    As many are claimed from the ledger as can be sent at once. An event that fails backs off by
    itself; the target is paused when different events fail in a row.

    Args:
        settings: of the target.
        ledger: open.
        metrics: where it is counted.
        spawn: see `Spawn`.

    Must be made inside a running loop.
    """

    def __init__(
        self, settings: TargetSettings, ledger: Ledger, metrics: Catalogue, spawn: Spawn
    ) -> None:
        self.settings = settings
        self._name = settings.name
        self._target = settings.connect()
        self._ledger = ledger
        self._outbox = ledger.store.outbox
        self._metrics = TargetMetrics(metrics, settings.name)
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._breaker = CircuitBreaker(random.random)
        # A retry that fails says nothing new of the target. Without this one, a target that is down
        # would get all retries after a restart.
        self._retry_breaker = CircuitBreaker(random.random)
        self._sending: dict[asyncio.Task[None], Notification] = {}
        self._results: list[DeliveryResult] = []
        self._accounts: set[str] = set()  # that events came of
        self._awake = asyncio.Event()
        self._stopping = False
        self._steady_since = self._loop.time()  # without a failure of the ledger
        self._retry_at = 0.0
        self._count_at = 0.0
        self._give_up_at = 0.0
        self._log_at = 0.0
        self._backlog = 0, 0.0  # how many are pending, and the oldest (Unix time)
        self._failure: tuple[float, Delivery] | None = None
        self._running = spawn(self._run())

    @property
    def status(self) -> TargetStatus:
        """What the status page shows."""
        closed = self._breaker.state(self._loop.time()) is State.CLOSED and self._target.ready
        return TargetStatus(self._name, *self._backlog, not closed, self._failure)

    def wake(self) -> None:
        """Look for what is to be sent, now."""
        self._awake.set()

    async def stop(self, timeout: float) -> None:
        """Stop; attempts under way may end within some seconds, the rest stays in the ledger."""
        deadline = self._loop.time() + timeout
        self._stopping = True
        self.wake()
        await asyncio.wait([self._running, *self._sending], timeout=timeout)
        late = list(self._sending)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        try:
            async with asyncio.timeout(max(0.1, deadline - self._loop.time())):
                await self._claim([], 0)
        except (LedgerError, TimeoutError) as error:
            # The next start sends again what is not recorded as delivered.
            problem = str(error) or "no answer in time"
            _log.warning("delivery results not recorded", target=self._name, problem=problem)
        await self._target.close()

    # Between the ledger and the target.

    async def _run(self) -> None:
        while not self._stopping:
            self._awake.clear()
            try:
                wait = await self._cycle()
            except LedgerError:  # the ledger counts and logs it
                self._steady_since = self._loop.time()
                wait = _LEDGER_RETRY
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._awake.wait()
            # Attempts seldom end alone.
            await asyncio.sleep(_GATHER)

    async def _cycle(self) -> float:
        """Record results, send what is due; returns how long there is nothing to do."""
        if self._loop.time() >= self._count_at:
            await self._count_pending()
        if self._loop.time() >= self._give_up_at:
            await self._give_up()
        wait = self._breaker.wait(self._loop.time())
        if not self._paused or self._results:  # else however often calls finish meanwhile
            free = self.settings.max_concurrency - len(self._sending)
            on_trial = self._breaker.state(self._loop.time()) is State.HALF_OPEN
            due_in = await self._claim(self._claims(), 1 if on_trial else free)
            now = self._loop.time()
            retry_wait = max(self._retry_breaker.wait(now), self._retry_at - now)
            wait = max(due_in, self._breaker.wait(now), retry_wait)
        if self._results:
            return 0.0
        if self._sending and wait <= 0:
            wait = math.inf  # each attempt that ends wakes this
        return max(0.0, min(wait or math.inf, _LOOK_INTERVAL, self._give_up_at - self._loop.time()))

    @property
    def _paused(self) -> bool:
        open_ = self._breaker.state(self._loop.time()) is State.OPEN
        return open_ or not self._target.ready

    async def _claim(self, claims: Sequence[Claim], limit: int) -> float:
        """Record results, claim more and send them; returns how long no other one is due."""
        results, self._results = self._results, []
        lease = self.settings.timeout + _LEASE
        try:
            result = await self._ledger.execute(
                self._outbox.claim, self._name, results, claims, limit, lease
            )
        except LedgerError:
            self._results = results + self._results  # to be recorded the next time
            raise
        self._metrics.delivered.inc(result.delivered)
        self._count_given_up(result.gave_up)
        for one in result.claimed:
            if self._stopping or self._paused:  # since these were claimed
                self._results.append(DeliveryResult(one, DeliveryAction.RELEASE))
            else:
                self._send(one)
        return math.inf if result.due_in is None else result.due_in

    async def _give_up(self) -> None:
        """Give up some of those whose time is over, whatever becomes of the others.

        While the target is paused, nothing is tried any more. Otherwise each has its last attempt,
        and what was overdue when this began, because nothing was sent for long, has all the time
        that it takes.
        """
        now = self._loop.time()
        ages = (_LAST_ATTEMPT, now - self._steady_since)
        if self._breaker.state(now) is not State.CLOSED or not self._target.ready:
            ages = (0.0, math.inf)
        gave_up = await self._ledger.execute(self._outbox.give_up, self._name, *ages)
        self._count_given_up(gave_up)
        # More of them the next time, after what is to be sent.
        self._give_up_at = now if gave_up == BATCH_SIZE else self._loop.time() + _LOOK_INTERVAL

    def _count_given_up(self, count: int) -> None:
        self._metrics.gave_up.inc(count)
        if count:
            _log.warning("notifications given up", target=self._name, count=count)

    async def _count_pending(self) -> None:
        started = self._loop.time()
        pending, oldest = await self._ledger.execute(self._outbox.backlog, self._name)
        now = self._loop.time()
        self._count_at = now + max(_COUNT_INTERVAL, (now - started) / _COUNT_SHARE)
        self._backlog = pending, oldest or 0.0
        self._metrics.pending.set(pending)
        self._metrics.oldest.set(oldest or 0.0)

    def _claims(self) -> list[Claim]:
        """Return what may be claimed now.

        Events that hang leave other accounts a connection, and new events most of them.
        """
        now, connections = self._loop.time(), self.settings.max_concurrency
        if self._stopping or self._paused:
            return []
        if self._breaker.state(now) is State.HALF_OPEN:
            on_trial = self._breaker.on_trial
            return [] if on_trial else [Claim(retry, 1, 1) for retry in (False, True)]
        held = Counter(one.call.account for one in self._sending.values())
        most = max(1, connections - 1) if len(self._accounts) > 1 else connections
        full = [name for name, count in held.items() if count >= most]
        each = most - max((count for count in held.values() if count < most), default=0)
        retries = max(1, int(connections * _RETRY_SHARE))
        retries -= sum(one.retry for one in self._sending.values())
        match self._retry_breaker.state(now):
            case State.OPEN:
                retries = 0
            case State.HALF_OPEN:
                retries = 0 if self._retry_breaker.on_trial else 1
        retries = retries if now >= self._retry_at else 0
        return [Claim(True, retries, each, full), Claim(False, connections, each, full)]

    # Attempts.

    def _send(self, one: Notification) -> None:
        now = self._loop.time()
        self._accounts.add(one.call.account)
        self._breaker.sent(one.id, now)
        if one.retry:
            self._retry_breaker.sent(one.id, now)
        task = self._spawn(self._deliver(one))
        self._sending[task] = one
        task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        del self._sending[task]
        self.wake()

    async def _deliver(self, one: Notification) -> None:
        started = self._loop.time()
        try:
            delivery = await self._target.deliver(one.call)
        except asyncio.CancelledError:
            # It may have arrived or not: it is sent again, at once.
            self._results.append(DeliveryResult(one, DeliveryAction.RELEASE))
            raise
        now = self._loop.time()
        if one.retry:
            rest = 1 / (_RETRY_SHARE * self.settings.max_concurrency) - 1
            self._retry_at = now + max(0.0, rest) * (now - started)
        if delivery.action is DeliveryAction.RELEASE:
            self._breaker.released(one.id)
            self._retry_breaker.released(one.id)
        else:
            self._metrics.requests[delivery.outcome].inc()
            self._metrics.duration.observe(now - started)
            self._observe_health(one, delivery, started, now)
            if delivery.outcome is not DeliveryOutcome.OK:
                self._failure = time.time(), delivery
        action, wait = delivery.action, 0.0
        if action is DeliveryAction.RETRY and one.attempts >= self.settings.max_attempts:
            action = DeliveryAction.GIVE_UP
        elif action is DeliveryAction.RETRY:
            wait = _RETRIES.wait(one.attempts, random.random())  # noqa: S311
            wait = max(wait, min(MAX_PAUSE, delivery.retry_after or 0.0))
            if now >= self._log_at:
                self._log_at = now + _LOG_INTERVAL
                _log.warning(
                    "notification failed",
                    target=self._name,
                    reason=delivery.outcome.value,
                    problem=delivery.problem,
                )
        self._results.append(DeliveryResult(one, action, wait))

    def _observe_health(
        self, one: Notification, delivery: Delivery, sent_at: float, now: float
    ) -> None:
        if delivery.healthy:
            self._retry_breaker.succeeded(now)
            if self._breaker.succeeded(now):
                _log.info("target resumed", target=self._name)
            return
        failure = (one.id, delivery.retry_after, sent_at, now)
        if one.retry:
            self._retry_breaker.failed(*failure)
            if self._breaker.state(now) is State.CLOSED:
                return
        if self._breaker.failed(*failure):
            _log.warning(
                "target paused",
                target=self._name,
                reason=delivery.outcome.value,
                problem=delivery.problem,
            )
