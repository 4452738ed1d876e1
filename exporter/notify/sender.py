"""Sends one target its notifications: new events first, retries after a back-off."""

from __future__ import annotations

import asyncio
import math
import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import structlog

from exporter.backoff import ExponentialBackoff
from exporter.config.notify import NotifyConfig
from exporter.errors import LedgerError
from exporter.ledger.ledger import Ledger
from exporter.ledger.outbox import Claim, Notification, Outbox, Settled, Step
from exporter.ledger.records import CHUNK
from exporter.metrics.catalogue import Catalogue
from exporter.notify.breaker import LONGEST, CircuitBreaker, State
from exporter.notify.post import Fate, Poster, PostOutcome, Reply
from exporter.notify.queue import SendQueue

AHEAD: Final = 4
"""How many times `max_concurrency` are claimed at a time: what is not sent soon, others may."""

_GATHER: Final = 0.05
"""Seconds that outcomes gather before they are written: a commit has to reach the disk."""

_LOOK_EVERY: Final = 5.0
"""Seconds after which it is looked for what another exporter left, or a clock made due, and for
what is to be given up."""

_COUNT_EVERY: Final = 10.0
_COUNT_SHARE: Final = 0.01
"""The share of the time that may be spent on counting what is pending."""

_LEDGER_RETRY: Final = 2.0

_LAST_ATTEMPT: Final = 30.0
"""Seconds that a notification has for its last attempt, once its time is over."""

_RETRIES: Final = ExponentialBackoff(5.0, LONGEST, jitter=0.25)

_LOG_EVERY: Final = 60.0
"""Seconds after which the failure of a single notification is logged again."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Outcomes:
    """What has become of claimed notifications and is not written yet."""

    delivered: list[Notification] = field(default_factory=list)
    refused: list[Notification] = field(default_factory=list)
    put_off: list[tuple[Notification, float]] = field(default_factory=list)
    released: list[Notification] = field(default_factory=list)

    def settled(self) -> Settled:
        return Settled(self.delivered, self.refused, self.put_off, self.released)

    def __bool__(self) -> bool:
        return bool(self.delivered or self.refused or self.put_off or self.released)


class TargetMetrics:
    """The series of one target of `notify`, each looked up once."""

    def __init__(self, catalogue: Catalogue, target: str) -> None:
        self.delivered = catalogue.notifications.labels(target, "delivered")
        self.gave_up = catalogue.notifications.labels(target, "gave_up")
        self.requests = {
            outcome: catalogue.notification_requests.labels(target, outcome.value)
            for outcome in PostOutcome
        }
        self.duration = catalogue.notification_duration.labels(target)
        self.pending = catalogue.notifications_pending.labels(target)
        self.oldest = catalogue.notifications_oldest.labels(target)


class Sender:
    """Sends one target its notifications, for as long as `run` runs.

    They are claimed from the ledger in small batches. An event that is not taken backs off by
    itself; the target is paused when different events are refused in a row.

    Args:
        config: of the target.
        ledger: open.
        metrics: the target's series.
        poster: sends requests; closed with `stop`.

    Must be made inside a running loop, and ended with `stop`.
    """

    def __init__(
        self, config: NotifyConfig, ledger: Ledger, metrics: TargetMetrics, poster: Poster
    ) -> None:
        self.config = config
        self._ledger = ledger
        self._outbox = Outbox(ledger.database, ledger.clock)
        self._metrics = metrics
        self._poster = poster
        self._loop = asyncio.get_running_loop()
        self._queue = SendQueue(config.max_concurrency)
        self._breaker = CircuitBreaker(random.random)
        # An event that is refused again says nothing new of the target. Without this one, a target
        # that is down would get all retries after a restart.
        self._retries = CircuitBreaker(random.random)
        self._sending: set[asyncio.Task[None]] = set()
        self._leases: dict[int, float] = {}  # their ends, by the rows of those that wait
        self._outcomes = _Outcomes()
        self._awake = asyncio.Event()
        self._stopping = False
        self._steady_since = self._loop.time()  # without a failure of the ledger
        self._count_at = 0.0
        self._give_up_at = 0.0
        self._log_at = 0.0
        self._running: asyncio.Task[None] | None = None
        self._broken: BaseException | None = None

    def wake(self) -> None:
        """Look for what is to be sent, now."""
        self._awake.set()

    async def run(self) -> None:
        """Send what there is and what comes, until `stop`.

        Whatever a request raises is a bug, and raised again here.
        """
        self._running = asyncio.current_task()
        while not self._stopping:
            self._awake.clear()
            wait = await self._go_on()
            if self._broken is not None:
                raise self._broken
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._awake.wait()
            # What has just ended is seldom alone.
            await asyncio.sleep(_GATHER)

    async def stop(self, within: float) -> None:
        """End: what is under way may end within some seconds, the rest stays in the ledger."""
        deadline = self._loop.time() + within
        self._stopping = True
        self.wake()
        if self._running is not None:
            await asyncio.wait([self._running], timeout=within)
        self._let_go(False, True)
        await self._settle(deadline)  # now: others may send it
        if self._sending:
            await asyncio.wait(self._sending, timeout=max(0.0, deadline - self._loop.time()))
        late = set(self._sending)
        for task in late:
            task.cancel()
        # They hand back what they were about to send.
        await asyncio.gather(*late, return_exceptions=True)
        await self._settle(deadline)
        await self._poster.close()

    async def _settle(self, deadline: float) -> None:
        if not self._outcomes:
            return
        outcomes, self._outcomes = self._outcomes, _Outcomes()
        try:
            async with asyncio.timeout(max(0.1, deadline - self._loop.time())):
                step = await self._ledger.call(self._outbox.settle, outcomes.settled())
                self._count_settled(step.delivered, step.gave_up)
        except (LedgerError, TimeoutError) as error:
            # Whoever comes next sends again what is not known to have arrived.
            problem = str(error) or "no answer in time"
            _log.warning("notifications not settled", target=self.config.name, problem=problem)

    # Between the ledger and the requests.

    async def _go_on(self) -> float:
        """Settle what was sent, send what is due; returns how long there is nothing to do."""
        try:
            if self._loop.time() >= self._count_at:
                await self._count()
            if self._loop.time() >= self._give_up_at:
                await self._give_up()
            pause = self._breaker.wait(self._loop.time())
            if pause > 0 and not self._outcomes:
                return self._bounded(pause)  # however often calls finish meanwhile
            step = await self._step()
        except LedgerError:
            self._steady_since = self._loop.time()
            return _LEDGER_RETRY  # counted, and logged by whoever commits
        if self._breaker.state(self._loop.time()) is State.OPEN:  # since it was asked for these
            self._let_go(False, True)
        self._send()
        now = self._loop.time()
        if self._outcomes:
            return 0.0
        trial = self._breaker.on_trial or self._retries.on_trial
        if step.due_in is None or trial or self._queue:
            return self._bounded(_LOOK_EVERY)  # each request that ends wakes this
        return self._bounded(max(step.due_in, self._breaker.wait(now), self._retries.wait(now)))

    def _bounded(self, wait: float) -> float:
        return max(0.0, min(wait, _LOOK_EVERY, self._give_up_at - self._loop.time()))

    async def _step(self) -> Step:
        outcomes, self._outcomes = self._outcomes, _Outcomes()
        claims = self._claims()
        on_trial = self._breaker.state(self._loop.time()) is State.HALF_OPEN
        # Most are sent long before; see `_send`.
        lease = (AHEAD + 1) * self.config.timeout + 30.0
        ends = self._loop.time() + lease
        try:
            step = await self._ledger.call(
                self._outbox.step,
                self.config.name,
                outcomes.settled(),
                claims,
                lease,
                1 if on_trial else math.inf,
            )
        except LedgerError:
            self._keep(outcomes)
            raise
        self._count_settled(step.delivered, step.gave_up)
        self._queue.add(step.claimed)
        self._leases.update((one.id, ends) for one in step.claimed)
        return step

    async def _give_up(self) -> None:
        """Give up some of those whose time is over, whatever becomes of the others.

        While the target is paused, nothing is tried any more. Otherwise each has its last attempt,
        and what was overdue when this began, because nothing was sent for long, has all the time
        that it takes.
        """
        now = self._loop.time()
        ages = (_LAST_ATTEMPT, now - self._steady_since)
        if self._breaker.state(now) is not State.CLOSED:
            ages = (0.0, math.inf)
        gave_up = await self._ledger.call(self._outbox.give_up, self.config.name, *ages)
        self._count_settled(0, gave_up)
        # More of them the next time, after what is to be sent.
        self._give_up_at = now if gave_up == CHUNK else self._loop.time() + _LOOK_EVERY

    def _count_settled(self, delivered: int, gave_up: int) -> None:
        self._metrics.delivered.inc(delivered)
        self._metrics.gave_up.inc(gave_up)
        if gave_up:
            _log.warning("notifications given up", target=self.config.name, count=gave_up)

    def _keep(self, outcomes: _Outcomes) -> None:
        """Settle the next time what could not be settled now."""
        new, self._outcomes = self._outcomes, outcomes
        outcomes.delivered += new.delivered
        outcomes.refused += new.refused
        outcomes.put_off += new.put_off
        outcomes.released += new.released

    async def _count(self) -> None:
        started = self._loop.time()
        backlog = await self._ledger.call(self._outbox.backlog, self.config.name)
        now = self._loop.time()
        self._count_at = now + max(_COUNT_EVERY, (now - started) / _COUNT_SHARE)
        self._metrics.pending.set(backlog.pending)
        ahead = self._ledger.clock.ahead
        self._metrics.oldest.set(backlog.oldest - ahead if backlog.oldest else 0.0)

    def _claims(self) -> list[Claim]:
        """Return what may be claimed now."""
        now = self._loop.time()
        state, retries = self._breaker.state(now), self._retries.state(now)
        if self._stopping or state is State.OPEN:
            return []
        if state is State.HALF_OPEN:
            if self._breaker.on_trial or self._queue:
                return []
            return [Claim(kind, 1, (), self._breaker.last) for kind in (False, True)]
        most = self.config.max_concurrency
        claims = [self._claim(AHEAD * most, retry=False)]
        if retries is State.CLOSED:
            claims.append(self._claim(most, retry=True))
        elif retries is State.HALF_OPEN and not (
            self._retries.on_trial or self._queue.waiting(retry=True)
        ):
            claims.append(Claim(True, 1, (), self._retries.last))
        return claims

    def _claim(self, most: int, *, retry: bool) -> Claim:
        waiting = self._queue.waiting(retry=retry)
        held = sum(waiting.values())
        # One account's backlog does not take the room of others.
        enough = self.config.max_concurrency
        full = [name for name, count in waiting.items() if count >= enough]
        room = max(enough, most - held - len(self._sending))
        return Claim(retry, min(room, 2 * most - held), full)

    # Requests.

    def _send(self) -> None:
        while not self._stopping:
            now = self._loop.time()
            state = self._breaker.state(now)
            if state is State.OPEN or (state is State.HALF_OPEN and self._breaker.on_trial):
                return
            one = self._queue.next(now)
            if one is None:
                return
            if now + self.config.timeout > self._leases.pop(one.id):
                # It waited for so long that others may soon claim it.
                self._queue.done(one, 0.0, now)
                self._outcomes.released.append(one)
                continue
            self._breaker.sent(one.event, now)
            if one.retry:
                self._retries.sent(one.event, now)
            task = self._loop.create_task(self._deliver(one))
            self._sending.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if not task.cancelled():
            self._broken = self._broken or task.exception()
        if not self._stopping:
            self._send()
            self.wake()

    async def _deliver(self, one: Notification) -> None:
        started = self._loop.time()
        try:
            reply = await self._poster.post(one.event, one.body)
        except asyncio.CancelledError:
            # Nobody knows whether it arrived: it is sent again, at once.
            self._outcomes.released.append(one)
            raise
        now = self._loop.time()
        self._metrics.requests[reply.outcome].inc()
        self._metrics.duration.observe(now - started)
        self._queue.done(one, now - started, now)
        self._judge(one, reply, started, now)

    def _judge(self, one: Notification, reply: Reply, sent_at: float, now: float) -> None:
        if reply.fate is Fate.DELIVERED:
            self._outcomes.delivered.append(one)
        elif reply.fate is Fate.REFUSED:
            self._outcomes.refused.append(one)
        else:
            wait = _RETRIES.wait(one.attempts, random.random())  # noqa: S311
            self._outcomes.put_off.append((one, max(wait, min(LONGEST, reply.wait or 0.0))))
            if now >= self._log_at:
                self._log_at = now + _LOG_EVERY
                self._warn("notification failed", reply)
        if reply.well:
            self._retries.succeeded(now)
            if self._breaker.succeeded(now):
                _log.info("target resumed", target=self.config.name)
            return
        if one.retry and self._retries.failed(one.event, reply.wait, sent_at, now):
            self._let_go(True)
        if one.retry and self._breaker.state(now) is State.CLOSED:
            return
        if self._breaker.failed(one.event, reply.wait, sent_at, now):
            self._warn("target paused", reply)
            self._let_go(False, True)

    def _warn(self, event: str, reply: Reply) -> None:
        reason = reply.outcome.value
        _log.warning(event, target=self.config.name, reason=reason, problem=reply.problem)

    def _let_go(self, *kinds: bool) -> None:
        """Leave to the next try, whoever makes it, what is claimed and not sent yet."""
        for retry in kinds:
            for one in self._queue.clear(retry=retry):
                del self._leases[one.id]
                self._outcomes.released.append(one)
