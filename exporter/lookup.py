"""Look calls up by hand: poll each until there is a result for it; count nothing."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from typing import Final

from exporter.calls import (
    Finished,
    GiveUpPolicy,
    Key,
    OddField,
    PollAgain,
    Result,
    Status,
    WatchedCall,
    verdict,
)
from exporter.config import AccountConfig, Config
from exporter.esms.answers import Answer
from exporter.esms.client import EsmsClient
from exporter.esms.codes import Outcome
from exporter.ids import ReferenceId, ReferenceKey, reference_key
from exporter.polling.circuit_breaker import GOOD, CircuitBreaker
from exporter.polling.rate_limiter import RateLimiter
from exporter.polling.stats import AccountStats
from exporter.signals import handled_signals

TRIES: Final = 3
"""How often a call is polled whose polls fail."""

_PAUSES: Final = 12
"""Pauses in a row, without a good answer in between, after which an account is given up."""

_RETRY_AFTER: Final = 1.0
"""Seconds until calls whose polls failed are polled again."""

_LOOK_EVERY: Final = 0.01
"""Seconds after which it is checked whether the account may be polled."""

# A call is polled once where the provider has said this of it, or of the credentials.
_FINAL: Final = frozenset({Outcome.OK, Outcome.NOT_FOUND, Outcome.AUTH, Outcome.API_ERROR})

# Where the provider's own words are missing.
_MESSAGES: Final = {
    Outcome.BAD_RESPONSE: "the answer is not one about this call",
    Outcome.HTTP_ERROR: "the provider answered with an HTTP error",
    Outcome.THROTTLED: "the provider asks for fewer requests",
}
_GUESSED: Final = "without a SentResult: the result is taken from the status"

CallName = tuple[str, ReferenceKey]
"""An account's name and an id as ids are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupResult:
    """What was found out about one call, in the words of the metrics.

    Attributes:
        reference_id: as it was named.
        state: of an open call, or `finished`; None where the provider has not answered.
        result: of a finished call; so are `status`, `duration` (seconds) and `key`.
        outcome: of the request, or of another one because of which none was sent.
        code: the provider's code; `other` for one that is not documented.
        message: the provider's words for a failure, or the exporter's.
        asked_at: when the answer came (UTC); None where no request was sent.
    """

    reference_id: ReferenceId
    account: str
    state: str | None = None
    result: Result | None = None
    status: Status | None = None
    duration: float | None = None
    key: Key | None = None
    outcome: Outcome
    code: str | None
    message: str
    asked_at: datetime | None

    @property
    def answered(self) -> bool:
        """Whether the provider has answered, also that it knows no such call."""
        return self.outcome in GOOD

    @property
    def name(self) -> CallName:
        """Which call it is."""
        return self.account, reference_key(self.reference_id)

    @property
    def summary(self) -> str:
        """One word for people: the result, else the state, else why there is none."""
        return self.result or self.state or self.outcome


COLUMNS: Final = tuple(field.name for field in fields(LookupResult))

Report = Callable[[LookupResult], None]
ReportPause = Callable[[LookupResult, float], None]
"""Called with each pause of an account: the failure that is its reason, and the seconds."""


def result_of(account: str, asked: ReferenceId, answer: Answer, now: float) -> LookupResult:
    """Return what an answer means for a call, as the exporter would decide it at a Unix time."""
    result = partial(
        LookupResult,
        reference_id=asked,
        account=account,
        code=answer.code,
        asked_at=datetime.fromtimestamp(now, UTC).replace(microsecond=0),
    )
    decided = verdict(WatchedCall(0, asked, now), answer, now, GiveUpPolicy())
    if isinstance(decided, Finished):
        return result(
            state="finished",
            result=decided.result,
            status=decided.status,
            duration=decided.duration,
            key=decided.key,
            outcome=answer.outcome,
            message=_GUESSED if OddField.SENT_RESULT in decided.odd else "",
        )
    if isinstance(decided, PollAgain):
        return result(state=decided.state, outcome=answer.outcome, message=answer.message)
    message = answer.message or _MESSAGES.get(decided.outcome, "")
    return result(outcome=decided.outcome, message=message)


class _AccountLookup:
    """Looks up calls of one account, at its rate and with the exporter's own circuit breaker.

    All calls are polled once, then those that failed once more. It ends early where the credentials
    are refused before any answer was good, and after `_PAUSES`.
    """

    def __init__(
        self,
        account: AccountConfig,
        config: Config,
        rate: float,
        report: Report,
        report_pause: ReportPause,
    ) -> None:
        self._account = account
        self._report, self._report_pause = report, report_pause
        self._client = EsmsClient(account, config.polling.timeout, tls=config.tls)
        self._limiter = RateLimiter(min(rate, account.rate_limit))
        self._calls: dict[int, WatchedCall] = {}
        self._breaker = CircuitBreaker(account.name, self._limiter, AccountStats(), self._calls)
        self._clock = asyncio.get_running_loop().time
        self._any_answered = False
        self._pauses = 0  # in a row
        self._paused_until = 0.0
        self._failure: LookupResult | None = None

    async def run(self, calls: Sequence[ReferenceId]) -> None:
        """Look all of them up."""
        now = time.time()
        self._calls.update((row, WatchedCall(row, call, now)) for row, call in enumerate(calls))
        async with self._client:
            for tries_left in reversed(range(TRIES)):
                if not await self._poll_all(last=not tries_left) or not self._calls:
                    break
                await asyncio.sleep(_RETRY_AFTER)
        for call in self._calls.values():
            if self._failure:
                self._report(replace(self._failure, reference_id=call.reference_id, asked_at=None))

    async def _poll_all(self, *, last: bool) -> bool:
        """Poll each call; return whether the account may be polled on."""
        left, slots = deque(self._calls.values()), asyncio.Semaphore(self._account.max_concurrency)
        async with asyncio.TaskGroup() as tasks:
            while left:
                await slots.acquire()
                if not await self._may_poll():
                    return False
                # Where calls fail, any other shows best whether the account may be polled.
                at = random.randrange(len(left)) if self._breaker.doubtful else 0  # noqa: S311
                left.rotate(-at)
                call = left.popleft()
                left.rotate(at)
                sent_at = self._clock()
                self._limiter.sent(sent_at, poll=True)
                self._breaker.sent()
                polling = tasks.create_task(self._poll(call, sent_at, last=last))
                polling.add_done_callback(lambda _: slots.release())
        return True

    async def _may_poll(self) -> bool:
        """Wait until a request may be sent; return whether one may."""
        breaker = self._breaker
        while (wait := breaker.wait(self._clock())) > 0:
            if breaker.reason and self._failure and breaker.paused_until != self._paused_until:
                self._paused_until = breaker.paused_until
                self._pauses += 1
                refused = breaker.reason is Outcome.AUTH and not self._any_answered
                if refused or self._pauses >= _PAUSES:
                    return False
                self._report_pause(self._failure, self._paused_until - self._clock())
            await asyncio.sleep(min(wait, _LOOK_EVERY))
        return True

    async def _poll(self, call: WatchedCall, sent_at: float, *, last: bool) -> None:
        answer = await self._client.send_status(call.reference_id)
        now = time.time()
        result = result_of(self._account.name, call.reference_id, answer, now)
        answer = answer._replace(outcome=result.outcome)
        self._breaker.polled(call, answer, sent_at, self._clock(), now)
        if result.answered:
            self._any_answered, self._pauses = True, 0
        else:
            self._failure = result
        if result.outcome in _FINAL or last:
            del self._calls[call.id]
            self._breaker.forget(call.id)
            self._report(result)


async def look_up(
    config: Config,
    calls: Mapping[CallName, ReferenceId],
    write: Callable[[Sequence[LookupResult]], None],
    report_pause: ReportPause,
    rate: float = math.inf,
) -> bool:
    """Look calls up, those of each account at its own pace.

    Args:
        config: the accounts.
        calls: which.
        write: takes results as they come, in a thread: it may block, and what it raises ends all.
        report_pause: see `ReportPause`.
        rate: requests per second of each account, where that is less than its own rate.

    Returns:
        False where a signal ended it: what was known by then is written.
    """
    results: asyncio.Queue[LookupResult | None] = asyncio.Queue()

    async def look_up_all() -> None:
        async with asyncio.TaskGroup() as tasks:
            for account in config.accounts:
                ids = [asked for (name, _), asked in calls.items() if name == account.name]
                if ids:
                    client = _AccountLookup(account, config, rate, results.put_nowait, report_pause)
                    tasks.create_task(client.run(ids))

    looking_up = asyncio.create_task(look_up_all())
    writing = asyncio.create_task(_write_all(results, write))
    writing.add_done_callback(lambda _: looking_up.cancel())
    with handled_signals(looking_up.cancel):
        await asyncio.wait({looking_up})
        results.put_nowait(None)
        await writing
    if looking_up.cancelled():
        return False
    looking_up.result()
    return True


async def _write_all(
    results: asyncio.Queue[LookupResult | None], write: Callable[[Sequence[LookupResult]], None]
) -> None:
    # In a thread: an output that is read slowly, or not at all, makes no request late.
    last = False
    while not last:
        batch = [await results.get()]
        while not results.empty():
            batch.append(results.get_nowait())
        last = batch[-1] is None
        await asyncio.to_thread(write, [result for result in batch if result is not None])
