"""Asks for the calls of one account, at its pace, until each has its line."""

from __future__ import annotations

import asyncio
import heapq
import math
import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

from exporter.calls import ReferenceId
from exporter.config import AccountConfig
from exporter.errors import RequestError
from exporter.esms.answers import Answer
from exporter.esms.client import Client
from exporter.esms.codes import Outcome
from exporter.lookup.line import Line, line_of
from exporter.polling.pace import Pace

TRIES: Final = 3
"""How often a call is asked for where nothing is learnt of it."""

PAUSES: Final = 4
"""Pauses in a row, without a good answer in between, with which an account is given up."""

_RETRY: Final = 1.0
"""Seconds until the second try; they double for each further one."""

# What the provider says of a call or of the credentials is not asked for twice.
_SAID: Final = frozenset({Outcome.OK, Outcome.NOT_FOUND, Outcome.AUTH, Outcome.API_ERROR})


@dataclass(order=True, slots=True)
class _Waiting:
    """A call that has no line yet: new ones in their order, then those to be tried again."""

    due: float
    number: int
    reference_id: ReferenceId = field(compare=False)
    failures: int = field(default=0, compare=False)


class Asker:
    """Asks for calls of one account.

    As in the exporter, a single request goes ahead until an answer is good. Refused credentials
    end it at once; so do `PAUSES` in a row.

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
        self._waiting = [_Waiting(-math.inf, n, call) for n, call in enumerate(calls)]
        self._loop = asyncio.get_running_loop()
        self._pace = Pace(account.rate_limit, lambda: random.uniform(0.9, 1.1))  # noqa: S311 - no secret hangs on it
        self._under_way = 0
        self._changed = asyncio.Event()
        self._pauses = 0  # in a row
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
            for call in sorted(self._waiting):
                self._tell(replace(why, reference_id=call.reference_id, asked_at=None))

    async def _next(self) -> _Waiting | None:
        """Return the next call once it may be asked for; None when no more are to be."""
        while not self._given_up and (self._waiting or self._under_way):
            now = self._loop.time()
            wait = self._wait(now)
            if wait <= 0:
                self._pace.sent(now)
                self._under_way += 1
                return heapq.heappop(self._waiting)
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if wait == math.inf else wait):
                    await self._changed.wait()
        return None

    def _wait(self, now: float) -> float:
        """Return the seconds until a request may be sent; infinite where an answer has to come."""
        if not self._waiting or self._under_way >= self._account.max_concurrency:
            return math.inf
        return max(self._pace.wait(now), self._waiting[0].due - now)

    async def _ask(self, client: Client, call: _Waiting) -> None:
        sent_at = self._loop.time()
        try:
            answer = await client.send_status(call.reference_id)
        except RequestError as error:
            answer = Answer(error.outcome, message=str(error))
        now = self._loop.time()
        line = line_of(self._account.name, call.reference_id, answer, time.time())
        pauses = self._pace.answered(line.outcome, answer.retry_after, sent_at, now)
        self._go_on(line, now, pauses=pauses)
        self._settle(call, line, now)
        self._under_way -= 1
        self._changed.set()

    def _go_on(self, line: Line, now: float, *, pauses: bool) -> None:
        """Decide whether the account may be asked further."""
        if line.answered:
            self._pauses = 0
        self._pauses += pauses
        if line.outcome is Outcome.AUTH or self._pauses >= PAUSES:
            self._given_up = self._given_up or line
        elif pauses:
            self._pausing(self._account.name, line, self._pace.paused_until - now)

    def _settle(self, call: _Waiting, line: Line, now: float) -> None:
        """Tell of a call, or see to its next try."""
        # What was throttled was not tried.
        call.failures += line.outcome is not Outcome.THROTTLED
        if line.outcome in _SAID or call.failures >= TRIES:
            self._tell(line)
            return
        call.due = now + _RETRY * 2.0 ** (call.failures - 1) if call.failures else now
        heapq.heappush(self._waiting, call)
