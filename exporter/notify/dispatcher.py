"""Dispatcher of notifications: claims, sends and retries them, and gives up."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import structlog

from exporter.backoff import ExponentialBackoff
from exporter.errors import LedgerError
from exporter.ledger.ledger import Ledger
from exporter.ledger.notifications import (
    NotificationRecord,
    newest_given_up,
    prune_given_up,
    retry_notifications,
)
from exporter.ledger.outbox import Claim, DeliveryAction, DeliveryResult, Notification
from exporter.ledger.types import BATCH_SIZE
from exporter.metrics.catalogue import Catalogue
from exporter.notify.breaker import MAX_PAUSE, PAUSES, State, TargetBreaker
from exporter.notify.target import Delivery, DeliveryOutcome, TargetSettings
from exporter.polling.stats import REQUEST_BUCKETS, Distribution
from exporter.supervisor import Spawn

_GATHER: Final = 0.02
"""Seconds for which results are batched before they are committed."""

_CHECK_INTERVAL: Final = 5.0
"""Seconds between checks for notifications that are due, overdue, or released by others."""

_COUNT_INTERVAL: Final = 10.0
_COUNT_SHARE: Final = 0.01
"""Maximum share of the time spent on counting pending notifications."""

_LEDGER_RETRY: Final = 2.0

_RETRY_SHARE: Final = 0.25
"""Maximum share of the connections for retries; with less than four connections, of the time."""

_FAILED_RETRIES: Final = 5
"""Failed retries without a success between them after which retries pause."""

_LEASE: Final = 30.0
"""Seconds after its timeout until an unfinished attempt may be claimed again."""

_LAST_ATTEMPT: Final = 30.0
"""Seconds for a last attempt after a notification has expired."""

_RETRIES: Final = ExponentialBackoff(5.0, MAX_PAUSE, jitter=0.25)

_LOG_INTERVAL: Final = 60.0
"""Minimum seconds between log messages about failed notifications of a target."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class TargetStatus:
    """A target, for metrics and the status page; numbers since the start of the process."""

    name: str
    pending: int = 0  # in the ledger
    oldest: float = 0.0  # when the oldest call with one finished (Unix time); 0 if there is none
    paused: bool = False
    failure: tuple[float, Delivery] | None = None  # the last one, and its Unix time
    delivered: int = 0
    gave_up: int = 0
    given_up: Sequence[NotificationRecord] = ()  # the newest in the ledger
    requests: dict[DeliveryOutcome, int] = field(
        default_factory=lambda: dict.fromkeys(DeliveryOutcome, 0)
    )
    durations: Distribution = field(default_factory=lambda: Distribution(REQUEST_BUCKETS))


def read_targets(metrics: Catalogue, targets: Callable[[], Iterable[TargetStatus]]) -> None:
    def each() -> Iterator[tuple[str, TargetStatus]]:
        return ((target.name, target) for target in targets())

    metrics.notifications.read_each(
        each, lambda target: {"delivered": target.delivered, "gave_up": target.gave_up}
    )
    metrics.notification_requests.read_each(each, lambda target: target.requests)
    metrics.notification_duration.read_each(each, lambda target: target.durations)
    metrics.notifications_pending.read_each(each, lambda target: target.pending)
    metrics.notifications_oldest.read_each(each, lambda target: target.oldest)


class Dispatcher:
    """Delivers notifications to all targets independently."""

    def __init__(self, ledger: Ledger, spawn: Spawn) -> None:
        self._ledger = ledger
        self._spawn = spawn
        self._workers: dict[str, TargetWorker] = {}

    async def open(self) -> None:
        """Make the claimed notifications of a killed exporter due."""
        await self._ledger.execute(self._ledger.store.outbox.release_all)

    def configure(self, targets: Sequence[TargetSettings], timeout: float) -> None:
        """Replace the targets; unchanged ones are not interrupted.

        Notifications of a removed target stay pending until they expire, and are sent if the target
        is added again. Attempts of changed or removed targets may finish within `timeout` seconds.
        """
        self._ledger.store.outbox.set_routes([settings.route for settings in targets])
        old, self._workers = self._workers, {}
        for settings in targets:
            worker = old.get(settings.name)
            if worker and worker.settings == settings:
                self._workers[settings.name] = old.pop(settings.name)
            else:
                status = worker.status if worker else TargetStatus(settings.name)
                new = TargetWorker(settings, self._ledger, self._spawn, status)
                self._workers[settings.name] = new
        for worker in old.values():
            self._spawn(worker.stop(timeout))

    @property
    def statuses(self) -> list[TargetStatus]:
        return [self._workers[name].status for name in sorted(self._workers)]

    def wake(self, targets: frozenset[str]) -> None:
        for name in targets & self._workers.keys():
            self._workers[name].wake()

    async def stop(self, timeout: float) -> None:
        """Stop; attempts may finish within `timeout` seconds, all others stay in the ledger."""
        await asyncio.gather(*(worker.stop(timeout) for worker in self._workers.values()))

    async def retry(self, row: int) -> bool:
        """Send a notification as soon as possible; return whether that is possible.

        See `retry_notifications`.
        """
        give_up_after = {
            name: worker.settings.route.give_up_after for name, worker in self._workers.items()
        }
        given = self._ledger.clock, [row], give_up_after
        history = self._ledger.store.settings.history
        retried = await self._ledger.execute(retry_notifications, *given, history=history)
        self.wake(frozenset(self._workers))
        return bool(retried)

    async def prune(self, before: float) -> None:
        """Delete notifications given up before a Unix time; give up expired ones without target."""
        while await self._ledger.execute(prune_given_up, before) == BATCH_SIZE:
            pass
        count = BATCH_SIZE
        while count == BATCH_SIZE:
            give_up = self._ledger.store.outbox.give_up_others
            count = await self._ledger.execute(give_up, list(self._workers))
            if count:
                _log.warning("notifications of removed targets given up", count=count)


class TargetWorker:
    """Delivers the notifications of a target until `stop`.

    Claims as many as it can send at once. A failed event backs off on its own; different events
    that fail in a row pause the target. Keeps `status` up to date. Must be created in a running
    event loop.
    """

    def __init__(
        self, settings: TargetSettings, ledger: Ledger, spawn: Spawn, status: TargetStatus
    ) -> None:
        self.settings = settings
        self._status = status
        self._name = settings.name
        self._target = settings.connect()
        self._ledger = ledger
        self._outbox = ledger.store.outbox
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._breaker = TargetBreaker(random.random)
        # Retries have their own pause, because failed retries do not show whether the target works.
        # Without it, a target that is down would get every retry after a restart.
        self._failed_retries = 0  # since the last success
        self._retry_at = 0.0
        self._sending: dict[asyncio.Task[None], Notification] = {}
        self._results: list[DeliveryResult] = []
        self._accounts: set[str] = set()  # accounts with events
        self._awake = asyncio.Event()
        self._stopping = False
        self._steady_since = self._loop.time()  # when the ledger last failed
        self._count_at = 0.0
        self._give_up_at = 0.0
        self._log_at = 0.0
        self._running = spawn(self._run())

    @property
    def status(self) -> TargetStatus:
        self._status.paused = not self._healthy
        return self._status

    def wake(self) -> None:
        self._awake.set()

    async def stop(self, timeout: float) -> None:
        """Stop; attempts may finish within `timeout` seconds, all others stay in the ledger."""
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
            # Events that are not recorded as delivered are sent again after the next start.
            problem = str(error) or "no answer in time"
            _log.warning("delivery results not recorded", target=self._name, problem=problem)
        await self._target.close()

    # Claims and results.

    async def _run(self) -> None:
        while not self._stopping:
            self._awake.clear()
            try:
                wait = await self._cycle()
            except LedgerError:  # already counted and logged
                self._steady_since = self._loop.time()
                wait = _LEDGER_RETRY
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._awake.wait()
            if self._sending:  # batch completions
                await asyncio.sleep(_GATHER)

    async def _cycle(self) -> float:
        """Record results and send due notifications; return the seconds until the next cycle."""
        if self._loop.time() >= self._count_at:
            await self._count_pending()
        if self._loop.time() >= self._give_up_at:
            await self._give_up()
        wait = self._breaker.wait(self._loop.time())
        if not self._paused or self._results:  # do not claim while paused
            free = self.settings.max_concurrency - len(self._sending)
            on_trial = self._breaker.state(self._loop.time()) is State.HALF_OPEN
            due_in = await self._claim(self._claims(), 1 if on_trial else free)
            now = self._loop.time()
            wait = max(due_in, self._breaker.wait(now), self._retry_at - now)
        if self._results:
            return 0.0
        if self._sending and wait <= 0:
            wait = math.inf  # the end of an attempt wakes this task
        until_give_up = self._give_up_at - self._loop.time()
        return max(0.0, min(wait or math.inf, _CHECK_INTERVAL, until_give_up))

    @property
    def _healthy(self) -> bool:
        return self._breaker.state(self._loop.time()) is State.CLOSED and self._target.ready

    @property
    def _paused(self) -> bool:
        open_ = self._breaker.state(self._loop.time()) is State.OPEN
        return open_ or not self._target.ready

    async def _claim(self, claims: Sequence[Claim], limit: int) -> float:
        """Record results, claim and send notifications; return the seconds until one is due."""
        results, self._results = self._results, []
        lease = self.settings.timeout + _LEASE
        try:
            result = await self._ledger.execute(
                self._outbox.claim, self._name, results, claims, limit, lease
            )
        except LedgerError:
            self._results = results + self._results  # recorded by the next cycle
            raise
        self._status.delivered += result.delivered
        self._count_given_up(result.gave_up)
        for one in result.claimed:
            if self._stopping or self._paused:  # changed during the claim
                self._results.append(DeliveryResult(one, DeliveryAction.RELEASE))
            else:
                self._send(one)
        return math.inf if result.due_in is None else result.due_in

    async def _give_up(self) -> None:
        """Give up expired notifications.

        While the target is paused, give up all of them. Otherwise, each gets a last attempt first,
        even if it expired while the ledger failed.
        """
        now = self._loop.time()
        ages = (_LAST_ATTEMPT, now - self._steady_since) if self._healthy else (0.0, math.inf)
        gave_up = await self._ledger.execute(self._outbox.give_up, self._name, *ages)
        self._count_given_up(gave_up)
        # After a full batch, continue in the next cycle, after sending what is due.
        self._give_up_at = now if gave_up == BATCH_SIZE else self._loop.time() + _CHECK_INTERVAL

    def _count_given_up(self, count: int) -> None:
        self._status.gave_up += count
        if count:
            _log.warning("notifications given up", target=self._name, count=count)

    async def _count_pending(self) -> None:
        started = self._loop.time()
        pending, oldest = await self._ledger.execute(self._outbox.backlog, self._name)
        now = self._loop.time()
        self._count_at = now + max(_COUNT_INTERVAL, (now - started) / _COUNT_SHARE)
        self._status.pending, self._status.oldest = pending, oldest or 0.0
        given = self._ledger.clock, self._name
        self._status.given_up = await self._ledger.execute(newest_given_up, *given)

    def _claims(self) -> list[Claim]:
        """Return what to claim.

        Reserves a connection for accounts other than the busiest one, and most connections for new
        events.
        """
        now, connections = self._loop.time(), self.settings.max_concurrency
        if self._stopping or self._paused:
            return []
        if self._breaker.state(now) is State.HALF_OPEN:
            on_trial = self._breaker.on_trial
            return [] if on_trial else [Claim(retry, 1, 1) for retry in (False, True)]
        held = Counter(one.call.account for one in self._sending.values())
        limit = max(1, connections - 1) if len(self._accounts) > 1 else connections
        full = [name for name, count in held.items() if count >= limit]
        each = limit - max((count for count in held.values() if count < limit), default=0)
        failing = self._failed_retries >= _FAILED_RETRIES
        retries = 1 if failing else max(1, int(connections * _RETRY_SHARE))
        retries -= sum(one.retry for one in self._sending.values())
        retries = retries if now >= self._retry_at else 0
        return [Claim(True, retries, each, full), Claim(False, connections, each, full)]

    # Attempts.

    def _send(self, one: Notification) -> None:
        self._accounts.add(one.call.account)
        self._breaker.sent(one.id, self._loop.time())
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
            # The event may have arrived or not: send it again at once.
            self._results.append(DeliveryResult(one, DeliveryAction.RELEASE))
            raise
        now = self._loop.time()
        if one.retry:
            rest = 1 / (_RETRY_SHARE * self.settings.max_concurrency) - 1
            self._retry_at = now + max(0.0, rest) * (now - started)
        if delivery.action is DeliveryAction.RELEASE:
            self._breaker.released(one.id)
        else:
            self._status.requests[delivery.outcome] += 1
            self._status.durations.observe(now - started)
            self._observe_health(one, delivery, started, now)
            if delivery.outcome is not DeliveryOutcome.OK:
                self._status.failure = time.time(), delivery
        action, wait = delivery.action, 0.0
        if action is DeliveryAction.RETRY and one.attempts >= self.settings.max_attempts:
            action = DeliveryAction.GIVE_UP
        elif action is DeliveryAction.RETRY:
            wait = _RETRIES.wait(one.attempts, random.random())  # noqa: S311
            wait = max(wait, min(MAX_PAUSE, delivery.retry_after or 0.0))
            if now >= self._log_at:
                self._log_at = now + _LOG_INTERVAL
                reason, problem = delivery.outcome.value, delivery.problem
                _log.warning(
                    "notification failed", target=self._name, reason=reason, problem=problem
                )
        answer = None if delivery.outcome is DeliveryOutcome.OK else delivery.answer
        self._results.append(DeliveryResult(one, action, wait, answer))

    def _observe_health(
        self, one: Notification, delivery: Delivery, sent_at: float, now: float
    ) -> None:
        if delivery.healthy:
            if self._failed_retries >= _FAILED_RETRIES:
                self._retry_at = now
            self._failed_retries = 0
            if self._breaker.succeeded(one.id, now):
                _log.info("target resumed", target=self._name)
            return
        if one.retry:
            self._failed_retries += 1
            if (pauses := self._failed_retries - _FAILED_RETRIES + 1) > 0:
                self._retry_at = now + PAUSES.wait(pauses, random.random())  # noqa: S311
            if self._breaker.state(now) is State.CLOSED:
                return
        if self._breaker.failed(one.id, delivery.retry_after, sent_at, now):
            reason, problem = delivery.outcome.value, delivery.problem
            _log.warning("target paused", target=self._name, reason=reason, problem=problem)
