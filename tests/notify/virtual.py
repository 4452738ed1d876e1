"""A sender in virtual time: a real outbox, and a receiver whose answers are up to the test."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from benchmarks.virtual_time import EPOCH, VirtualLoop
from exporter.calls import Finished, Result, Status
from exporter.config.notify import NotifyConfig
from exporter.ids import reference_id
from exporter.ledger.clock import LedgerClock, Moment
from exporter.ledger.engine import open_database
from exporter.ledger.ledger import Ledger
from exporter.ledger.records import NewCall, Observation
from exporter.ledger.store import Store
from exporter.metrics.catalogue import Catalogue
from exporter.notify.post import Fate, Poster, PostOutcome, Reply, answered
from exporter.notify.routes import route_of
from exporter.notify.sender import Sender, TargetMetrics
from exporter.secrets import Secret
from tests.notify.receiver import SECRET

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


def refuses(status: int, retry_after: int | None = None) -> Answer:
    return Answer(status, headers={} if retry_after is None else {"Retry-After": f"{retry_after}"})


class World:
    """One target, what finishes, and what is sent.

    Attributes:
        answer: says how the receiver answers for a call, at a time.
        sent: when a call's event was sent (virtual seconds), and the call, in this order.
        delivered: when a call's event was taken.
        finished: when a call finished.
        set_by: seconds by which the wall clock was set since the start.
    """

    def __init__(self, folder: Path, **options: Any) -> None:  # Any: keys of `notify`
        self.config = NotifyConfig(
            name="t", url=Secret("http://receiver.example/"), secret=Secret(SECRET), **options
        )
        self.database = open_database(f"sqlite:///{folder / 'ledger.db'}")
        # Nothing here has to survive a crash of the machine, and no test waits for its disk.
        raw = self.database.engine.raw_connection()
        raw.cursor().execute("PRAGMA synchronous = OFF")
        raw.close()
        self.set_by = 0.0
        self.clock = LedgerClock(lambda: Moment(EPOCH + self.set_by + self.now, self.now, ""))
        self.store = Store(self.database, self.clock)
        self.store.routes = (route_of(self.config),)
        self.metrics = TargetMetrics(Catalogue(), "t")
        self.answer: Callable[[str, float], Answer] = lambda _, __: OK
        self.sent: list[tuple[float, str]] = []
        self.delivered: dict[str, float] = {}
        self.finished: dict[str, float] = {}
        self.sender: Sender | None = None

    # What a sender uses of a ledger and of a poster.

    async def call(self, function: Callable[..., R], /, *given: Any, **more: Any) -> R:  # Any: its
        return function(*given, **more)

    async def post(self, event: str, body: str) -> Reply:
        del event
        name = json.loads(body)["data"]["reference_id"]
        self.sent.append((self.now, name))
        answer = self.answer(name, self.now)
        if answer.status is None:
            await asyncio.sleep(self.config.timeout)
            return Reply(PostOutcome.TIMEOUT, Fate.AGAIN)
        await asyncio.sleep(answer.after)
        reply = answered(answer.status, answer.headers, EPOCH + self.now)
        if reply.fate is Fate.DELIVERED:
            self.delivered.setdefault(name, self.now)
        return reply

    async def close(self) -> None:
        pass

    # What a test does.

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def finish(self, *names: str, account: str = "main") -> None:
        new = [NewCall(account, reference_id(name), {}) for name in names]
        added, *_ = self.store.watch(None, new, EPOCH)
        self.store.commit([Observation(account, one.call, BUSY, EPOCH) for one in added])
        self.finished.update(dict.fromkeys(names, self.now))
        if self.sender:
            self.sender.wake()

    def start(self) -> None:
        ledger, poster = cast("Ledger", self), cast("Poster", self)
        self.sender = Sender(self.config, ledger, self.metrics, poster)
        self._running = asyncio.create_task(self.sender.run())

    async def stop(self) -> None:
        assert self.sender
        await self.sender.stop(1.0)
        await self._running
        self.sender = None

    def late(self, name: str) -> float:
        """Return how long a call's event took, so far if it was not taken."""
        return self.delivered.get(name, self.now) - self.finished[name]

    def requests(self, since: float, until: float) -> list[str]:
        return [name for at, name in self.sent if since <= at < until]


def run(main: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine in virtual time; returns what it returns."""
    loop = VirtualLoop()
    random.seed(7)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main)
