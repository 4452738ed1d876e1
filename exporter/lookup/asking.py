"""Asks for the calls of one account, at its pace, until each has its line."""

from __future__ import annotations

import asyncio
import heapq
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from exporter.calls import ReferenceId
from exporter.config import AccountConfig
from exporter.errors import RequestError
from exporter.esms.answers import Answer
from exporter.esms.client import Client
from exporter.esms.codes import Outcome
from exporter.lookup.line import Line, line_of
from exporter.polling.breaker import Change, CircuitBreaker, Witness

TRIES: Final = 3
"""How often a call is asked for where nothing is learnt of it."""

PAUSES: Final = 12
"""Pauses in a row, without a good answer in between, with which an account is given up: at least a
minute. Before that, `OUTAGE` calls failed, and a different one after each pause."""

_RETRY: Final = 1.0
"""Seconds until the second try; they double for each further one."""

# What the provider says of a call or of the credentials is not asked for twice.
_SAID: Final = frozenset({Outcome.OK, Outcome.NOT_FOUND, Outcome.AUTH, Outcome.API_ERROR})


@dataclass(order=True, slots=True)
class _Call:
    """A call without a line: new, or to be asked for again."""

    due: float
    number: int
    reference_id: ReferenceId = field(compare=False)
    failures: int = field(default=0, compare=False)


class Asker:
    """Asks for calls of one account.

    As in the exporter, a single request goes ahead until an answer is good. Credentials that are
    refused for two calls before any answer is good end it; so do `PAUSES` in a row.

    Args:
        account: whose calls they are.
        calls: their ids, each once.
        timeout: of one request, in seconds.
        tell: takes the line of each call, in the order in which they are known.
        pausing: told of a pause: the account, why, and for how many seconds.

    Must be made inside a running loop.
    """

    def __init__(
        self,
        account: AccountConfig,
        calls: Iterable[ReferenceId],
        *,
        timeout: float,
        tell: Callable[[Line], None],
        pausing: Callable[[str, Line, float], None],
    ) -> None:
        self._account = account
        self._timeout = timeout
        self._tell = tell
        self._pausing = pausing
        self._new = deque(_Call(-math.inf, n, call) for n, call in enumerate(calls))
        self._retries: list[_Call] = []
        self._loop = asyncio.get_running_loop()
        jitter = partial(random.uniform, 0.9, 1.1)
        self._breaker = CircuitBreaker(account.rate_limit, jitter)
        self._under_way = 0
        self._changed = asyncio.Event()
        self._pauses = 0  # in a row
        self._answered = False  # for any call
        self._given_up: Line | None = None

    async def run(self) -> None:
        """Ask for all of them."""
        account = self._account
        client = Client(
            account.base_url,
            account.api_key,
            account.secret_key,
            timeout=self._timeout,
            max_connections=account.max_concurrency,
        )
        async with client, asyncio.TaskGroup() as requests:
            while call := await self._next():
                requests.create_task(self._ask(client, call))
        if why := self._given_up:
            for call in sorted([*self._new, *self._retries]):
                self._tell(replace(why, reference_id=call.reference_id, asked_at=None))

    async def _next(self) -> _Call | None:
        """Return the next call once it may be asked for; None when no more are to be."""
        while not self._given_up and (self._new or self._retries or self._under_way):
            now = self._loop.time()
            wait = self._wait(now)
            if wait <= 0:
                self._breaker.sent(now)
                self._under_way += 1
                return self._pop()
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if wait == math.inf else wait):
                    await self._changed.wait()
        return None

    def _wait(self, now: float) -> float:
        """Return the seconds until a request may be sent; infinite where an answer has to come."""
        if self._under_way >= self._account.max_concurrency:
            return math.inf
        if not self._new and not self._retries:
            return math.inf
        due = -math.inf if self._new else self._retries[0].due
        return max(self._breaker.wait(now), due - now)

    def _pop(self) -> _Call:
        """Return the next call; after failures any new one: bad ids may stand side by side."""
        if not self._new:
            return heapq.heappop(self._retries)
        if self._breaker.doubtful:
            number = random.randrange(len(self._new))  # noqa: S311 - no secret depends on it
            self._new[0], self._new[number] = self._new[number], self._new[0]
        return self._new.popleft()

    async def _ask(self, client: Client, call: _Call) -> None:
        sent_at = self._loop.time()
        try:
            answer = await client.send_status(call.reference_id)
        except RequestError as error:
            answer = Answer(error.outcome, message=str(error))
        now = self._loop.time()
        line = line_of(self._account.name, call.reference_id, answer, time.time())
        # Where no new call is left, a second failure of one says as much as that of another.
        witness = Witness.SICK if call.failures and self._new else Witness.WEAK
        change = self._breaker.answered(line.outcome, answer.retry_after, sent_at, now, witness)
        self._go_on(line, now, opened=change is Change.OPENED)
        self._settle(call, line, now)
        self._under_way -= 1
        self._changed.set()

    def _go_on(self, line: Line, now: float, *, opened: bool) -> None:
        """Decide whether the account may be asked further."""
        if line.answered:
            self._answered = True
            self._pauses = 0
        self._pauses += opened
        refused = line.outcome is Outcome.AUTH and not self._answered
        if opened and (refused or self._pauses >= PAUSES):
            self._given_up = self._given_up or line
        elif opened:
            self._pausing(self._account.name, line, self._breaker.paused_until - now)

    def _settle(self, call: _Call, line: Line, now: float) -> None:
        """Tell of a call, or see to its next try."""
        call.failures += 1
        if line.outcome in _SAID or call.failures >= TRIES:
            self._tell(line)
            return
        call.due = now + _RETRY * 2.0 ** (call.failures - 1)
        heapq.heappush(self._retries, call)
