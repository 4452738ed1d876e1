"""A dispatcher in virtual time: a real outbox, and a target whose answers are up to the test."""

from __future__ import annotations

import asyncio
import functools
import math
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from benchmarks.virtual_time import EPOCH, VirtualLoop
from exporter.calls import Finished, Result, Status
from exporter.errors import LedgerError
from exporter.ids import reference_id
from exporter.ledger.clock import LedgerClock, Moment
from exporter.ledger.engine import open_database
from exporter.ledger.ledger import Ledger
from exporter.ledger.outbox import DeliveryAction, Route
from exporter.ledger.store import Store
from exporter.ledger.types import FinishedCall, NewCall, Observation
from exporter.notify.dispatcher import TargetStatus, TargetWorker
from exporter.notify.target import Delivery, DeliveryOutcome, TargetSettings
from exporter.notify.webhook import interpret
from exporter.supervisor import Supervisor

R = TypeVar("R")

BUSY = Finished(Result.SUCCESS, Status.BUSY)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a receiver does with a request.

    Attributes:
        status: of HTTP; None for no answer within the time-out.
        after: seconds until it comes.
        headers: of the answer.
    """

    status: int | None = 204
    after: float = 0.005
    headers: Mapping[str, str] = field(default_factory=dict)


OK = Answer()
HANGS = Answer(None)
GOES = Answer(0)
"""The target cannot be reached any more: nothing was sent."""


def refuses(status: int, retry_after: int | None = None) -> Answer:
    return Answer(status, headers={} if retry_after is None else {"Retry-After": f"{retry_after}"})


class World:
    """A target, its worker, and what finishes.

    Attributes:
        timeout: see `TargetSettings`; so are the next two.
        give_up_after: see `Route`.
        answer: says how the target answers for a call, at a time.
        ready: whether the target can be reached.
        sent: when a call's event was sent (virtual seconds), and the call, in this order.
        delivered: when a call's event was taken.
        finished: when a call finished.
        ledger_fails: says whether a method of the outbox fails.
        ledger_delay: seconds that each takes.
        set_by: seconds by which the wall clock was set since the start.
    """

    timeout = 10.0
    max_concurrency = 8
    max_attempts = math.inf
    give_up_after = 86_400.0
    ready = True

    def __init__(self, folder: Path) -> None:
        self.loop = VirtualLoop()
        self.database = open_database(f"sqlite:///{folder / 'ledger.db'}")
        # Nothing here has to survive a crash of the machine, and no test waits for its disk.
        raw = self.database.engine.raw_connection()
        raw.cursor().execute("PRAGMA synchronous = OFF")
        raw.close()
        self.set_by = 0.0
        self.clock = LedgerClock(lambda: Moment(EPOCH + self.set_by + self.now, self.now, ""))
        self.store = Store(self.database, self.clock)
        self.outbox = self.store.outbox
        self.status = TargetStatus("t")
        self.ledger_delay = 0.0
        self.ledger_fails: Callable[[str], bool] = lambda _: False
        self.answer: Callable[[str, float], Answer] = lambda _, __: OK
        self.sent: list[tuple[float, str]] = []
        self.delivered: dict[str, float] = {}
        self.finished: dict[str, float] = {}
        self.worker: TargetWorker | None = None

    # What a worker uses of a ledger, of a target and of a connection.

    async def execute(self, statements: Callable[..., R], /, *args: Any) -> R:  # Any: its
        await asyncio.sleep(self.ledger_delay)
        if self.ledger_fails(statements.__name__):
            raise LedgerError("locked")
        return self.database.run(statements, *args)

    async def deliver(self, call: FinishedCall) -> Delivery:
        name = call.reference_id
        self.sent.append((self.now, name))
        answer = self.answer(name, self.now)
        if answer is GOES:
            self.ready = False
            return Delivery(DeliveryOutcome.CONNECTION, DeliveryAction.RELEASE)
        if answer.status is None:
            await asyncio.sleep(self.timeout)
            return Delivery(DeliveryOutcome.TIMEOUT, DeliveryAction.RETRY)
        await asyncio.sleep(answer.after)
        delivery = interpret(answer.status, answer.headers, EPOCH + self.now)
        if delivery.action is DeliveryAction.DONE:
            self.delivered.setdefault(name, self.now)
        return delivery

    async def close(self) -> None:
        pass

    # What a test does.

    @property
    def now(self) -> float:
        return self.loop.time()

    @property
    def route(self) -> Route:
        return Route("t", self.give_up_after)

    def finish(self, *names: str, account: str = "main") -> None:
        self.outbox.set_routes([self.route])
        new = [NewCall(account, reference_id(name), {}) for name in names]
        added, *_ = self.store.watch(None, new, EPOCH)
        self.store.commit([Observation(account, one.call, BUSY, EPOCH) for one in added])
        self.finished.update(dict.fromkeys(names, self.now))
        if self.worker:
            self.worker.wake()

    def start(self) -> None:
        settings = TargetSettings(
            self.route,
            None,
            lambda: self,
            self.timeout,
            self.max_concurrency,
            self.max_attempts,
        )
        self.supervisor = Supervisor()
        parts = cast("Ledger", self), self.supervisor.start, self.status
        self.worker = TargetWorker(settings, *parts)

    async def stop(self, timeout: float = 1.0) -> None:
        assert self.worker
        await self.worker.stop(timeout)
        assert self.supervisor.failure is None
        self.worker = None

    @property
    def backlog(self) -> int:
        """How many notifications are pending."""
        return self.database.run(self.outbox.backlog, "t")[0]

    def late(self, name: str) -> float:
        """Return how long a call's event took, so far if it was not taken."""
        return self.delivered.get(name, self.now) - self.finished[name]

    def requests(self, since: float, until: float) -> list[str]:
        return [name for at, name in self.sent if since <= at < until]


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test of a world in virtual time, and stop the world."""

    @functools.wraps(test)
    def wrapper(world: World, **fixtures: Any) -> None:  # Any: of the test
        async def main() -> None:
            await test(world=world, **fixtures)
            if world.worker:
                await world.stop()

        random.seed(7)
        with asyncio.Runner(loop_factory=lambda: world.loop) as runner:
            runner.run(main())

    return wrapper
