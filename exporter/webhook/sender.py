"""Sends one target what it is to be told, at its own pace."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import structlog

from exporter.config.notify import NotifyConfig
from exporter.errors import LedgerError
from exporter.ledger.ledger import Ledger
from exporter.ledger.outbox import Notification, Outbox, Settled, Step
from exporter.metrics.targets import TargetMetrics
from exporter.webhook.post import Fate, Poster, Reply

AHEAD: Final = 4
"""How many times `max_concurrency` are claimed at a time: what is not sent soon, others may."""

_GATHER: Final = 0.05
"""Seconds that outcomes gather before they are written: a commit has to reach the disk."""

_LOOK_EVERY: Final = 5.0
"""Seconds after which it is looked for what another exporter left, or a clock made due."""

_COUNT_EVERY: Final = 10.0
_COUNT_SHARE: Final = 0.01
"""The share of the time that may be spent on counting what is pending."""

_LEDGER_RETRY: Final = 2.0

LONGEST: Final = 900.0
"""Seconds after which a notification is tried again at the latest, whatever the target asks for."""

_FIRST: Final = 5.0
_REST_FIRST: Final = 1.0
_REST_LONGEST: Final = 60.0

_log = structlog.get_logger(__name__)


def back_off(attempts: int, first: float, longest: float, chance: float) -> float:
    """Return how long to wait, in seconds, after a number of failures in a row: twice as long each.

    Args:
        attempts: at least 1.
        first: seconds after the first failure.
        longest: seconds.
        chance: from 0 to 1; takes up to a quarter off, so that not all come at the same time.
    """
    return float(min(longest, first * 2.0 ** min(attempts - 1, 32))) * (1 - chance / 4)


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


class Sender:
    """Tells one target of finished calls, for as long as `run` runs.

    What is to be told is claimed from the ledger in small batches. While a target does not answer,
    one notification after the other is tried, with longer and longer rests; with the first that is
    taken, the rest follows as fast as the target takes it.

    Args:
        config: of the target.
        ledger: open.
        metrics: the target's series.

    Must be made inside a running loop, and ended with `stop`.
    """

    def __init__(self, config: NotifyConfig, ledger: Ledger, metrics: TargetMetrics) -> None:
        self.config = config
        self._ledger = ledger
        self._outbox = Outbox(ledger.database)
        self._metrics = metrics
        self._poster = Poster(config)
        self._loop = asyncio.get_running_loop()
        self._ready: deque[Notification] = deque()
        self._sending: set[asyncio.Task[None]] = set()
        self._outcomes = _Outcomes()
        self._awake = asyncio.Event()
        self._stopping = False
        self._failures = 0  # in a row, each after a rest
        self._rest_until = 0.0
        self._count_at = 0.0
        self._running: asyncio.Task[None] | None = None
        self._broken: BaseException | None = None

    def wake(self) -> None:
        """Look for what is to be told, now."""
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
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                if self._running is not None:
                    await asyncio.wait([self._running])
                if self._sending:
                    await asyncio.wait(self._sending)
        late = set(self._sending)
        for task in late:
            task.cancel()
        # They hand back what they were about to send.
        await asyncio.gather(*late, return_exceptions=True)
        self._let_go()
        try:
            async with asyncio.timeout(max(0.1, deadline - self._loop.time())):
                if self._outcomes:
                    await self._settle()
        except (LedgerError, TimeoutError) as error:
            # Whoever comes next sends again what is not known to have arrived.
            problem = str(error) or "no answer in time"
            _log.warning("notifications not settled", target=self.config.name, problem=problem)
        await self._poster.close()

    # Between the ledger and the requests.

    async def _go_on(self) -> float:
        """Settle what was sent, send what is due; returns how long there is nothing to do."""
        try:
            if self._loop.time() >= self._count_at:
                await self._count()
            rest = self._rest_until - self._loop.time()
            if rest > 0 and not self._outcomes:
                return rest  # however often calls finish meanwhile
            step = await self._step()
        except LedgerError:
            return _LEDGER_RETRY  # counted, and logged by whoever commits
        self._ready.extend(step.claimed)
        rest = self._rest_until - self._loop.time()
        if self._stopping or rest > 0:  # since it was asked for these
            self._let_go()
            return 0.0 if self._outcomes else rest
        self._send()
        if self._sending or step.due_in is None:
            return _LOOK_EVERY  # each request that ends wakes this, and so does each commit
        return min(_LOOK_EVERY, step.due_in)

    async def _step(self) -> Step:
        outcomes, self._outcomes = self._outcomes, _Outcomes()
        most = self._room()
        try:
            step = await self._ledger.call(
                self._outbox.step,
                self.config.name,
                outcomes.settled(),
                most,
                # Each of those ahead may take the whole time-out.
                (AHEAD + 1) * self.config.timeout + 30.0,
                failing=self._failures > 0,
            )
        except LedgerError:
            self._keep(outcomes)
            raise
        self._count_settled(step)
        return step

    async def _settle(self) -> None:
        self._count_settled(await self._ledger.call(self._outbox.settle, self._outcomes.settled()))

    def _count_settled(self, step: Step) -> None:
        self._metrics.delivered.value += step.delivered
        self._metrics.gave_up.value += step.gave_up
        if step.gave_up:
            _log.warning("notifications given up", target=self.config.name, count=step.gave_up)

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
        self._metrics.pending.value = float(backlog.pending)
        self._metrics.oldest.value = backlog.oldest or 0.0

    def _room(self) -> int:
        """Return how many may be claimed now."""
        if self._stopping or self._loop.time() < self._rest_until:
            return 0
        if self._failures:
            return 0 if self._sending or self._ready else 1
        held = len(self._ready) + len(self._sending)
        most = self.config.max_concurrency
        return AHEAD * most - held if len(self._ready) < most else 0

    # Requests.

    def _send(self) -> None:
        at_once = 1 if self._failures else self.config.max_concurrency
        while self._ready and len(self._sending) < at_once:
            task = self._loop.create_task(self._tell(self._ready.popleft()))
            self._sending.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if not task.cancelled():
            self._broken = self._broken or task.exception()
        if not self._stopping:
            if self._loop.time() >= self._rest_until:
                self._send()
            self.wake()

    async def _tell(self, one: Notification) -> None:
        started = self._loop.time()
        try:
            reply = await self._poster.post(one.event, one.body)
        except asyncio.CancelledError:
            # Nobody knows whether it arrived: it is sent again, at once.
            self._outcomes.released.append(one)
            raise
        self._metrics.requests[reply.outcome].value += 1
        self._metrics.duration.observe(self._loop.time() - started)
        self._judge(one, reply)

    def _judge(self, one: Notification, reply: Reply) -> None:
        if reply.fate is Fate.DELIVERED:
            self._outcomes.delivered.append(one)
        elif reply.fate is Fate.REFUSED:
            self._outcomes.refused.append(one)
        else:
            wait = back_off(one.attempts, _FIRST, LONGEST, random.random())  # noqa: S311
            self._outcomes.put_off.append((one, max(wait, min(LONGEST, reply.wait or 0.0))))
        resting = self._loop.time() < self._rest_until
        if not reply.well:
            self._rest(reply, longer=resting)
        elif self._failures and not resting:
            _log.info("target takes notifications again", target=self.config.name)
            self._failures = 0

    def _rest(self, reply: Reply, *, longer: bool) -> None:
        now = self._loop.time()
        asked = min(LONGEST, reply.wait or 0.0)
        if longer:  # one of many that were under way, and are one failure together
            self._rest_until = max(self._rest_until, now + asked)
            return
        if not self._failures:
            _log.warning(
                "target takes no notifications",
                target=self.config.name,
                reason=reply.outcome.value,
                problem=reply.problem,
            )
        self._failures += 1
        wait = back_off(self._failures, _REST_FIRST, _REST_LONGEST, random.random())  # noqa: S311
        self._rest_until = now + max(wait, asked)
        self._let_go()

    def _let_go(self) -> None:
        """Leave to the next try, whoever makes it, what is claimed and not sent yet."""
        self._outcomes.released += self._ready
        self._ready.clear()
