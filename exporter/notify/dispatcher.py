"""Delivers notifications of finished calls: claims, sends, retries, gives up."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Final

import structlog

from exporter.backoff import ExponentialBackoff
from exporter.errors import LedgerError
from exporter.ledger.ledger import Ledger
from exporter.ledger.outbox import Claim, ClaimResult, DeliveryResults, Notification
from exporter.ledger.types import BATCH_SIZE
from exporter.metrics.catalogue import Catalogue
from exporter.notify.breaker import MAX_PAUSE, CircuitBreaker, State
from exporter.notify.queue import SendQueue
from exporter.notify.target import Delivery, DeliveryAction, DeliveryOutcome, TargetSettings

AHEAD: Final = 4
"""How many times `max_concurrency` are claimed at a time: others may send what is not sent soon."""

_GATHER: Final = 0.05
"""Seconds that results gather before they are recorded: a commit has to reach the disk."""

_LOOK_INTERVAL: Final = 5.0
"""Seconds between looks for what another exporter left, a clock made due, or is overdue."""

_COUNT_INTERVAL: Final = 10.0
_COUNT_SHARE: Final = 0.01
"""The share of the time that may be spent on counting what is pending."""

_LEDGER_RETRY: Final = 2.0

_LAST_ATTEMPT: Final = 30.0
"""Seconds that a notification has for its last attempt, once its time is over."""

_RETRIES: Final = ExponentialBackoff(5.0, MAX_PAUSE, jitter=0.25)

_LOG_INTERVAL: Final = 60.0
"""Seconds after which the failure of a single notification is logged again."""

_log = structlog.get_logger(__name__)


class Dispatcher:
    """Delivers notifications to all targets; none waits for another.

    Args:
        ledger: to be open before `open`.
        metrics: where it is counted.
        spawn: runs work in the background; work that fails ends the exporter.
    """

    def __init__(
        self,
        ledger: Ledger,
        metrics: Catalogue,
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
    ) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._spawn = spawn
        self._workers: dict[str, TargetWorker] = {}

    async def open(self) -> None:
        """Make due what a killed process had claimed.

        Raises:
            LedgerError: the ledger failed.
        """
        await self._ledger.call(self._ledger.store.outbox.release_all)

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
            metrics = TargetMetrics(self._metrics, name)
            self._workers[name] = TargetWorker(wanted[name], self._ledger, metrics)
            self._spawn(self._workers[name].run())

    def wake(self, targets: frozenset[str]) -> None:
        """Send what was just written for these targets, or can be delivered again."""
        for name in targets & self._workers.keys():
            self._workers[name].wake()

    async def stop(self, timeout: float) -> None:
        """Stop; attempts under way may end within some seconds, the rest stays in the ledger."""
        await asyncio.gather(*(worker.stop(timeout) for worker in self._workers.values()))

    async def prune(self) -> None:
        """Delete overdue notifications of removed targets.

        Raises:
            LedgerError: the ledger failed.
        """
        pruned = BATCH_SIZE
        while pruned == BATCH_SIZE:
            prune = self._ledger.store.outbox.prune
            pruned = await self._ledger.call(prune, list(self._workers))
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
    """Delivers one target's notifications, for as long as `run` runs.

    They are claimed from the ledger in small batches. An event that fails backs off by itself; the
    target is paused when different events fail in a row.

    Args:
        settings: of the target.
        ledger: open.
        metrics: the target's series.

    Must be made inside a running loop, and ended with `stop`.
    """

    def __init__(self, settings: TargetSettings, ledger: Ledger, metrics: TargetMetrics) -> None:
        self.settings = settings
        self._name = settings.name
        self._target = settings.connect()
        self._ledger = ledger
        self._outbox = ledger.store.outbox
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._queue = SendQueue(settings.max_concurrency)
        self._breaker = CircuitBreaker(random.random)
        # A retry that fails says nothing new of the target. Without this one, a target that is down
        # would get all retries after a restart.
        self._retry_breaker = CircuitBreaker(random.random)
        self._sending: set[asyncio.Task[None]] = set()
        self._leases: dict[int, float] = {}  # their ends, by the rows of those in the queue
        self._results = DeliveryResults()
        self._awake = asyncio.Event()
        self._stopping = False
        self._steady_since = self._loop.time()  # without a failure of the ledger
        self._count_at = 0.0
        self._give_up_at = 0.0
        self._log_at = 0.0
        self._running: asyncio.Task[None] | None = None
        self._bug: BaseException | None = None

    def wake(self) -> None:
        """Look for what is to be sent, now."""
        self._awake.set()

    async def run(self) -> None:
        """Deliver what there is and what comes, until `stop`.

        An exception of an attempt is a bug, and raised again here.
        """
        self._running = asyncio.current_task()
        while not self._stopping:
            self._awake.clear()
            wait = await self._cycle()
            if self._bug is not None:
                raise self._bug
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._awake.wait()
            # Attempts seldom end alone.
            await asyncio.sleep(_GATHER)

    async def stop(self, timeout: float) -> None:
        """Stop; attempts under way may end within some seconds, the rest stays in the ledger."""
        deadline = self._loop.time() + timeout
        self._stopping = True
        self.wake()
        if self._running is not None:
            await asyncio.wait([self._running], timeout=timeout)
        self._release(False, True)
        await self._record(deadline)  # now: others may send it
        if self._sending:
            await asyncio.wait(self._sending, timeout=max(0.0, deadline - self._loop.time()))
        late = set(self._sending)
        for task in late:
            task.cancel()
        # They release what they were about to send.
        await asyncio.gather(*late, return_exceptions=True)
        await self._record(deadline)
        await self._target.close()

    async def _record(self, deadline: float) -> None:
        if not self._results:
            return
        results, self._results = self._results, DeliveryResults()
        try:
            async with asyncio.timeout(max(0.1, deadline - self._loop.time())):
                claim = self._outbox.claim
                result = await self._ledger.call(claim, self._name, results, [], 0.0)
                self._count_results(result.delivered, result.gave_up)
        except (LedgerError, TimeoutError) as error:
            # The next start sends again what is not recorded as delivered.
            problem = str(error) or "no answer in time"
            _log.warning("delivery results not recorded", target=self._name, problem=problem)

    # Between the ledger and the target.

    async def _cycle(self) -> float:
        """Record results, send what is due; returns how long there is nothing to do."""
        if self._paused():
            self._release(False, True)
        try:
            if self._loop.time() >= self._count_at:
                await self._count_pending()
            if self._loop.time() >= self._give_up_at:
                await self._give_up()
            if self._paused() and not self._results:  # however often calls finish meanwhile
                return self._bounded(self._breaker.wait(self._loop.time()) or math.inf)
            result = await self._claim()
        except LedgerError:
            self._steady_since = self._loop.time()
            return _LEDGER_RETRY  # the ledger counts and logs it
        if self._paused():  # since these were claimed
            self._release(False, True)
        self._send()
        now = self._loop.time()
        if self._results:
            return 0.0
        on_trial = self._breaker.on_trial or self._retry_breaker.on_trial
        if result.due_in is None or on_trial or self._queue:
            return self._bounded(math.inf)  # each attempt that ends wakes this
        waits = (result.due_in, self._breaker.wait(now), self._retry_breaker.wait(now))
        return self._bounded(max(waits))

    def _paused(self) -> bool:
        open_ = self._breaker.state(self._loop.time()) is State.OPEN
        return open_ or not self._target.ready

    def _bounded(self, wait: float) -> float:
        return max(0.0, min(wait, _LOOK_INTERVAL, self._give_up_at - self._loop.time()))

    async def _claim(self) -> ClaimResult:
        results, self._results = self._results, DeliveryResults()
        # Most are sent long before; see `_send`.
        lease = (AHEAD + 1) * self.settings.timeout + 30.0
        ends = self._loop.time() + lease
        on_trial = self._breaker.state(self._loop.time()) is State.HALF_OPEN
        limit = 1 if on_trial else math.inf
        try:
            result = await self._ledger.call(
                self._outbox.claim, self._name, results, self._claims(), lease, limit
            )
        except LedgerError:
            results.extend(self._results)  # to be recorded the next time
            self._results = results
            raise
        self._count_results(result.delivered, result.gave_up)
        self._queue.add(result.claimed)
        self._leases.update((one.id, ends) for one in result.claimed)
        return result

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
        gave_up = await self._ledger.call(self._outbox.give_up, self._name, *ages)
        self._count_results(0, gave_up)
        # More of them the next time, after what is to be sent.
        self._give_up_at = now if gave_up == BATCH_SIZE else self._loop.time() + _LOOK_INTERVAL

    def _count_results(self, delivered: int, gave_up: int) -> None:
        self._metrics.delivered.inc(delivered)
        self._metrics.gave_up.inc(gave_up)
        if gave_up:
            _log.warning("notifications given up", target=self._name, count=gave_up)

    async def _count_pending(self) -> None:
        started = self._loop.time()
        pending, oldest = await self._ledger.call(self._outbox.backlog, self._name)
        now = self._loop.time()
        self._count_at = now + max(_COUNT_INTERVAL, (now - started) / _COUNT_SHARE)
        self._metrics.pending.set(pending)
        self._metrics.oldest.set(oldest or 0.0)

    def _claims(self) -> list[Claim]:
        """Return what may be claimed now."""
        now = self._loop.time()
        retries = self._retry_breaker.state(now)
        if self._stopping or self._paused():
            return []
        if self._breaker.state(now) is State.HALF_OPEN:
            if self._breaker.on_trial or self._queue:
                return []
            return [Claim(retry, 1, (), self._breaker.last) for retry in (False, True)]
        limit = self.settings.max_concurrency
        claims = [self._share(AHEAD * limit, retry=False)]
        if retries is State.CLOSED:
            claims.append(self._share(limit, retry=True))
        elif retries is State.HALF_OPEN and not (
            self._retry_breaker.on_trial or self._queue.waiting(retry=True)
        ):
            claims.append(Claim(True, 1, (), self._retry_breaker.last))
        return claims

    def _share(self, limit: int, *, retry: bool) -> Claim:
        waiting = self._queue.waiting(retry=retry)
        held = sum(waiting.values())
        # One account's backlog does not take the room of others.
        enough = self.settings.max_concurrency
        full = [name for name, count in waiting.items() if count >= enough]
        room = max(enough, limit - held - len(self._sending))
        return Claim(retry, min(room, 2 * limit - held), full)

    # Attempts.

    def _send(self) -> None:
        while not self._stopping:
            now = self._loop.time()
            if self._paused() or (
                self._breaker.state(now) is State.HALF_OPEN and self._breaker.on_trial
            ):
                return
            one = self._queue.next(now)
            if one is None:
                return
            if now + self.settings.timeout > self._leases.pop(one.id):
                # It waited for so long that others may soon claim it.
                self._queue.done(one, 0.0, now)
                self._results.released.append(one)
                continue
            self._breaker.sent(one.id, now)
            if one.retry:
                self._retry_breaker.sent(one.id, now)
            task = self._loop.create_task(self._deliver(one))
            self._sending.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if not task.cancelled():
            self._bug = self._bug or task.exception()
        if not self._stopping:
            self._send()
            self.wake()

    async def _deliver(self, one: Notification) -> None:
        started = self._loop.time()
        try:
            delivery = await self._target.deliver(one.call)
        except asyncio.CancelledError:
            # It may have arrived or not: it is sent again, at once.
            self._results.released.append(one)
            raise
        now = self._loop.time()
        self._queue.done(one, now - started, now)
        if delivery.action is DeliveryAction.RELEASE:
            self._results.released.append(one)
            self._breaker.released(one.id)
            self._retry_breaker.released(one.id)
            return
        self._metrics.requests[delivery.outcome].inc()
        self._metrics.duration.observe(now - started)
        self._keep_result(one, delivery, now)
        self._observe_health(one, delivery, started, now)

    def _keep_result(self, one: Notification, delivery: Delivery, now: float) -> None:
        last = one.attempts >= self.settings.max_attempts
        if delivery.action is DeliveryAction.DONE:
            self._results.delivered.append(one)
        elif last or delivery.action is DeliveryAction.GIVE_UP:
            self._results.rejected.append(one)
        else:
            wait = _RETRIES.wait(one.attempts, random.random())  # noqa: S311
            wait = max(wait, min(MAX_PAUSE, delivery.retry_after or 0.0))
            self._results.put_off.append((one, wait))
            if now >= self._log_at:
                self._log_at = now + _LOG_INTERVAL
                self._warn("notification failed", delivery)

    def _observe_health(
        self, one: Notification, delivery: Delivery, sent_at: float, now: float
    ) -> None:
        if delivery.healthy:
            self._retry_breaker.succeeded(now)
            if self._breaker.succeeded(now):
                _log.info("target resumed", target=self._name)
            return
        failure = (one.id, delivery.retry_after, sent_at, now)
        if one.retry and self._retry_breaker.failed(*failure):
            self._release(True)
        if one.retry and self._breaker.state(now) is State.CLOSED:
            return
        if self._breaker.failed(*failure):
            self._warn("target paused", delivery)
            self._release(False, True)

    def _warn(self, event: str, delivery: Delivery) -> None:
        reason = delivery.outcome.value
        _log.warning(event, target=self._name, reason=reason, problem=delivery.problem)

    def _release(self, *kinds: bool) -> None:
        """Release what is claimed and not sent yet."""
        for retry in kinds:
            for one in self._queue.clear(retry=retry):
                del self._leases[one.id]
                self._results.released.append(one)
