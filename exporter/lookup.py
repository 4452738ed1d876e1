"""Manual look-ups: poll calls until each has a result, without counting them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from typing import Final

from exporter.calls import (
    WATCHED,
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
from exporter.config import AccountConfig, PollingConfig
from exporter.esms.answers import Answer
from exporter.esms.client import EsmsClient
from exporter.esms.codes import Outcome
from exporter.ids import Kind, ReferenceId, ReferenceKey, reference_key
from exporter.polling.circuit_breaker import GOOD
from exporter.polling.poller import Poller
from exporter.polling.stats import AccountStats
from exporter.signals import handled_signals

TRIES: Final = 3
"""Polls of a call whose polls fail."""

_PAUSES: Final = 12
"""Consecutive pauses, without a good answer between them, until an account is given up."""

_RETRY_AFTER: Final = 1.0
"""Seconds until failed calls are polled again."""

_LOOK_EVERY: Final = 0.02
"""Seconds between checks whether all calls have a result, or the account is paused."""

_POLLING: Final = PollingConfig.model_construct(
    pace="growing",
    interval=_RETRY_AFTER,
    max_interval=_RETRY_AFTER,
    not_found_grace=math.inf,
    give_up_after=math.inf,
)

# Outcomes after which a call is not polled again.
_FINAL: Final = frozenset({Outcome.OK, Outcome.NOT_FOUND, Outcome.AUTH, Outcome.API_ERROR})

# For outcomes without a message from the provider.
_MESSAGES: Final = {
    Outcome.BAD_RESPONSE: "the answer is not about this call",
    Outcome.HTTP_ERROR: "the provider answered with an HTTP error",
    Outcome.THROTTLED: "the provider throttles requests",
}
# For finished calls whose answer does not say the result.
_GUESSED: Final = {
    OddField.SENT_RESULT: "no SentResult: the result is derived from the status",
    OddField.SEND_SUCCESS: "no SendSuccess and no SendFailed: the message counts as failed",
}

CallName = tuple[str, Kind, ReferenceKey]
"""Account name, kind and normalized id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupResult:
    """The result of a look-up, in the words of the metrics.

    Attributes:
        reference_id: as the user wrote it.
        kind: the look-up that was used.
        state: of an open call, or `finished`; None without an answer.
        result: of a finished call, like `status`, `duration` (seconds) and `key`.
        delivered: receivers of a finished message that got it; `failed` are the others.
        price: of a finished message, in VND.
        outcome: of the request, or of the request that made the look-up stop.
        code: the provider's code; `other` if it is not a number.
        message: the provider's or the exporter's message about a failure.
        asked_at: time of the answer (UTC); None if no request was sent.
    """

    reference_id: ReferenceId
    account: str
    kind: Kind
    state: str | None = None
    result: Result | None = None
    status: Status | None = None
    duration: float | None = None
    key: Key | None = None
    delivered: int | None = None
    failed: int | None = None
    price: float | None = None
    outcome: Outcome
    code: str | None
    message: str
    asked_at: datetime | None

    @property
    def answered(self) -> bool:
        """Whether the provider answered, including that the id is not found."""
        return self.outcome in GOOD

    @property
    def name(self) -> CallName:
        """The account, the kind and the normalized id."""
        return self.account, self.kind, reference_key(self.reference_id)

    @property
    def summary(self) -> str:
        """The result, else the state, else the outcome."""
        return self.result or self.state or self.outcome


COLUMNS: Final = tuple(field.name for field in fields(LookupResult))

Report = Callable[[LookupResult], None]
ReportPause = Callable[[LookupResult, float], None]
"""Called for each pause of an account with the failure that caused it, and the seconds."""


def result_of(
    account: str, asked: ReferenceId, answer: Answer, now: float, kind: Kind = Kind.CALL
) -> LookupResult:
    """Interpret an answer as the exporter does; `now` is a Unix time."""
    result = partial(
        LookupResult,
        reference_id=asked,
        account=account,
        kind=kind,
        code=answer.code,
        asked_at=datetime.fromtimestamp(now, UTC).replace(microsecond=0),
    )
    decided = verdict(WATCHED[kind](0, asked, now), answer, now, GiveUpPolicy())
    if isinstance(decided, Finished):
        delivered, failed = decided.receivers or (None, None)
        return result(
            state="finished",
            result=decided.result,
            status=decided.status,
            duration=decided.duration,
            key=decided.key,
            delivered=delivered,
            failed=failed,
            price=decided.price,
            outcome=answer.outcome,
            message="; ".join(_GUESSED[field] for field in decided.odd if field in _GUESSED),
        )
    if isinstance(decided, PollAgain):
        return result(state=decided.state, outcome=answer.outcome, message=answer.message)
    message = answer.message or _MESSAGES.get(decided.outcome, "")
    return result(outcome=decided.outcome, message=message)


class _AccountLookup:
    """Looks up calls of one account with a `Poller`, and reports each answer.

    Polls each call once, and up to `TRIES` times if polls fail. Stops early after `_PAUSES`, or if
    the credentials are refused before any good answer.
    """

    def __init__(
        self,
        account: AccountConfig,
        client: EsmsClient,
        rate: float,
        report: Report,
        report_pause: ReportPause,
    ) -> None:
        self._name = account.name
        self._client = client
        self._report, self._report_pause = report, report_pause
        account = account.model_copy(update={"rate_limit": min(rate, account.rate_limit)})
        self._bugs: list[BaseException] = []
        self._poller = Poller(
            account, _POLLING, self._poll, AccountStats(), lambda *_: None, self._bugs.append
        )
        self._calls: dict[tuple[ReferenceId, Kind], WatchedCall] = {}
        self._any_answered = False
        self._pauses = 0  # consecutive
        self._paused_until = -math.inf
        self._failure: LookupResult | None = None

    async def run(self, calls: Sequence[tuple[ReferenceId, Kind]]) -> None:
        now, poller = time.time(), self._poller
        for row, (asked, kind) in enumerate(calls):
            self._calls[asked, kind] = call = WATCHED[kind](row, asked, now)
            poller.add([call])
        async with self._client:
            try:
                poller.wake()
                while poller.calls and not self._has_to_stop():  # noqa: ASYNC110 - pauses, too
                    await asyncio.sleep(_LOOK_EVERY)
            finally:
                await poller.stop(0)
        for call in poller.calls.values():
            if self._failure:
                asked = call.reference_id
                self._report(
                    replace(self._failure, reference_id=asked, kind=call.kind, asked_at=None)
                )

    async def _poll(self, reference_id: ReferenceId, kind: Kind) -> Answer:
        """Poll a call, and report the result or the last failure."""
        answer = await self._client.send_status(reference_id, kind)
        result = result_of(self._name, reference_id, answer, time.time(), kind)
        if result.answered:
            self._any_answered, self._pauses = True, 0
        else:
            self._failure = result
        call = self._calls[reference_id, kind]
        if result.outcome in _FINAL or call.polls + 1 >= TRIES:
            self._poller.remove(call.id)
            self._report(result)
        else:
            # Even if `Retry-After` is longer: it may be about this call alone.
            asyncio.get_running_loop().call_later(_RETRY_AFTER, self._poller.poll_now, call.id)
        return answer

    def _has_to_stop(self) -> bool:
        if self._bugs:
            raise self._bugs[0]
        breaker = self._poller.breaker
        if breaker.reason and self._failure and breaker.paused_until != self._paused_until:
            self._paused_until = breaker.paused_until
            self._pauses += 1
            refused = breaker.reason is Outcome.AUTH and not self._any_answered
            if refused or self._pauses >= _PAUSES:
                return True
            seconds = self._paused_until - asyncio.get_running_loop().time()
            self._report_pause(self._failure, seconds)
        return False


async def look_up(
    accounts: Iterable[AccountConfig],
    connect: Callable[[AccountConfig], EsmsClient],
    calls: Mapping[CallName, ReferenceId],
    write: Callable[[Sequence[LookupResult]], None],
    report_pause: ReportPause,
    rate: float = math.inf,
) -> bool:
    """Look up calls; each account has its own rate limit. Return False if a signal ended it.

    `write` receives results as they arrive, in a thread; its exceptions end the look-up. `rate`
    applies to an account whose own limit is higher.
    """
    results: asyncio.Queue[LookupResult | None] = asyncio.Queue()

    async def look_up_all() -> None:
        async with asyncio.TaskGroup() as tasks:
            for account in accounts:
                ids = [
                    (asked, kind)
                    for (name, kind, _), asked in calls.items()
                    if name == account.name
                ]
                if ids:
                    one = account, connect(account), rate, results.put_nowait, report_pause
                    tasks.create_task(_AccountLookup(*one).run(ids))

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
    # In a thread, so that a slow or blocked output delays no request.
    last = False
    while not last:
        batch = [await results.get()]
        while not results.empty():
            batch.append(results.get_nowait())
        last = batch[-1] is None
        await asyncio.to_thread(write, [result for result in batch if result is not None])
