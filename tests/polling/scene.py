"""An account and its provider in virtual time, some of whose calls are never answered properly."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from benchmarks import virtual_time
from benchmarks.virtual_time import PollingSettings
from exporter.calls import WATCHED, CallState, Finished, GiveUpPolicy, PollAgain, WatchedCall
from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.ids import Kind, ReferenceId
from exporter.polling.poller import Poller
from exporter.polling.stats import AccountStats

QUEUED = Answer(Outcome.OK, "100", send_status=2)
BUSY = Answer(Outcome.OK, "100", send_status=5, sent_result=1, call_status="BUSY", delivered=1)
NOT_FOUND = Answer(Outcome.NOT_FOUND, "105")
SETTINGS = PollingSettings(15.0, 300.0, GiveUpPolicy(600.0, 259_200.0), 20.0, 32)
LATENCY = 0.05


def ringing(chance: random.Random) -> float:
    """Return how long a call takes: it rings, and what it says is heard."""
    return chance.uniform(2, 25) + min(120.0, chance.lognormvariate(3.0, 0.6))


def now() -> float:
    """Return the virtual seconds since the test began."""
    return asyncio.get_running_loop().time()


@dataclass(slots=True)
class Scene:
    """An account, its poller and its provider; to be made in a virtual loop.

    Attributes:
        replies: what the provider answers for some ids, always.
        for_all: what it answers for every id now, or raises, if anything.
        hold: set when answers may go out; None if they always may.
        allowed: requests per second, beyond which it throttles.
        lives: for how many seconds each call is queued.
        asked: the ids that it was asked for.
        asked_at: when.
        under_way: requests that wait for their answer now.
        most: the most of them at once.
        observed: every verdict on a call.
        finished: when each call finished, and how.
        failures: bugs in the poller.
    """

    replies: dict[str, Answer] = field(default_factory=dict)
    for_all: Answer | Exception | None = None
    hold: asyncio.Event | None = None
    allowed: float = float("inf")
    lives: dict[str, float] = field(default_factory=dict)
    placed: dict[str, float] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    asked_at: list[float] = field(default_factory=list)
    under_way: int = 0
    most: int = 0
    observed: list[tuple[str, Finished | PollAgain]] = field(default_factory=list)
    finished: dict[str, tuple[float, Finished]] = field(default_factory=dict)
    failures: list[BaseException] = field(default_factory=list)
    stats: AccountStats = field(default_factory=AccountStats)
    poller: Poller = field(init=False)
    _second: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        self.poller = Poller(
            *SETTINGS.sections,
            self.send_status,
            self.stats,
            self._observe,
            self.failures.append,
            virtual_time.wall,
            virtual_time.wall,
        )

    def configure(self, **changes: object) -> None:
        """Change some of `SETTINGS`."""
        self.poller.configure(*replace(SETTINGS, **changes).sections)  # type: ignore[arg-type]

    async def request(self, answer: Answer, timeout: float = 1.0) -> Answer | None:
        """Send a request other than a poll; return its answer, None if it was not sent."""

        async def send() -> Answer:
            return answer

        answered = await self.poller.request(send, timeout)
        return answered[0] if answered else None

    async def send_status(self, reference_id: ReferenceId, _: Kind = Kind.CALL) -> Answer:
        """Answer as the provider."""
        asked_at = now()
        self.asked.append(reference_id)
        self.asked_at.append(asked_at)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        second, requests = self._second
        self._second = int(asked_at), requests + 1 if int(asked_at) == second else 1
        try:
            await (self.hold.wait() if self.hold else asyncio.sleep(LATENCY))
        finally:
            self.under_way -= 1
        if isinstance(self.for_all, Exception):
            raise self.for_all
        if self.for_all:
            return self.for_all
        if self._second[1] > self.allowed:
            return Answer(Outcome.THROTTLED, "160")
        if reference_id in self.replies:
            return self.replies[reference_id]
        ended = asked_at >= self.placed[reference_id] + self.lives.get(reference_id, 0.0)
        return BUSY if ended else QUEUED

    def watch(
        self,
        *names: str,
        label_set: int = 0,
        state: CallState = CallState.NEW,
        age: float = 0.0,
        kind: Kind = Kind.CALL,
    ) -> None:
        """Have calls watched from now on."""
        watched = virtual_time.wall() - age
        for name in names:
            self.placed[name] = now()
            row = len(self.placed)
            call = WATCHED[kind](
                row, ReferenceId(name), watched, state, watched, label_set=label_set
            )
            self.poller.add([call])
        self.poller.wake()

    async def until(self, condition: Callable[[], bool]) -> float:
        """Wait for a condition; returns when it held."""
        async with asyncio.timeout(10 * 86_400):  # of virtual time, as the next one
            while not condition():  # noqa: ASYNC110 - conditions of any kind
                await asyncio.sleep(1.0)
        return now()

    async def until_finished(self, *names: str) -> float:
        """Wait until calls have finished; returns when the last of them did."""
        await self.until(lambda: all(name in self.finished for name in names))
        return max(self.finished[name][0] for name in names)

    def requests(self, begin: float = 0.0, end: float = float("inf"), prefix: str = "") -> int:
        """Return how many requests were sent for calls with a prefix, from and until a time."""
        return sum(
            begin <= at < end and name.startswith(prefix)
            for name, at in zip(self.asked, self.asked_at, strict=True)
        )

    def delays(self, prefix: str, placed_from: float = 0.0) -> list[float]:
        """Return how many seconds after their end the results of calls were known, sorted."""
        return sorted(
            at - self.placed[name] - self.lives[name]
            for name, (at, _) in self.finished.items()
            if name.startswith(prefix) and self.placed[name] >= placed_from
        )

    def _observe(self, call: WatchedCall, found: Finished | PollAgain, at: float) -> None:
        self.observed.append((call.reference_id, found))
        if isinstance(found, Finished) or found.state is not call.state:  # as the ledger does
            self.poller.apply_committed(call, found, at)
        if isinstance(found, Finished):
            assert call.reference_id not in self.finished
            self.finished[call.reference_id] = now(), found
