"""Looks calls up: polls each until there is a line for it, and counts nothing."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import uvloop

from exporter.calls import GiveUpPolicy, WatchedCall
from exporter.config import AccountConfig, Config
from exporter.esms.answers import Answer
from exporter.esms.client import EsmsClient
from exporter.esms.codes import Outcome
from exporter.ids import ReferenceId
from exporter.lookup.line import CallName, Line, line_of
from exporter.polling.poller import Poller, PollingSettings
from exporter.polling.stats import AccountStats
from exporter.signals import handled_signals

TRIES: Final = 3
"""How often a call is polled where nothing is learnt of it."""

PAUSES: Final = 12
"""Pauses in a row, without a good answer in between, with which an account is given up."""

_RETRY: Final = 1.0
"""Seconds until a call is polled again, at most."""

_LOOK_EVERY: Final = 0.05
"""Seconds after which it is looked whether the account is paused, or all is done."""

# What the provider says of a call or of the credentials is not asked for twice.
_SAID: Final = frozenset({Outcome.OK, Outcome.NOT_FOUND, Outcome.AUTH, Outcome.API_ERROR})

Pausing = Callable[[str, Line, float], None]
"""Told of a pause: the account, why, and for how many seconds."""


class Asker:
    """Looks up calls of one account, with the exporter's own poller.

    Credentials that are refused before any answer was good end it; so do `PAUSES` in a row.

    Args:
        account: whose calls they are.
        calls: their ids, each once.
        timeout: of one request, in seconds.
        tell: takes the line of each call, in the order in which they are known.
        pausing: see `Pausing`.

    Must be made inside a running loop.
    """

    def __init__(
        self,
        account: AccountConfig,
        calls: Iterable[ReferenceId],
        *,
        timeout: float,
        tell: Callable[[Line], None],
        pausing: Pausing,
    ) -> None:
        self._account = account
        self._rows = {call: row for row, call in enumerate(calls)}
        self._tell = tell
        self._pausing = pausing
        self._tries: Counter[ReferenceId] = Counter()
        self._answered = False  # for any call
        self._pauses = 0  # in a row
        self._failed: Line | None = None  # the last line without an answer
        self._bug: BaseException | None = None
        self._client = EsmsClient(
            account.base_url,
            account.api_key,
            account.secret_key,
            timeout=timeout,
            proxy=account.proxy_url,
        )
        never = GiveUpPolicy(float("inf"), float("inf"))
        settings = PollingSettings(
            _RETRY, _RETRY, never, account.rate_limit, account.max_concurrency
        )
        self._poller = Poller(
            account.name, self, settings, AccountStats(), lambda *_: None, self._fail
        )

    def _fail(self, error: BaseException) -> None:
        self._bug = error

    async def run(self) -> None:
        """Look all of them up."""
        loop = asyncio.get_running_loop()
        health = self._poller.health
        paused_until = health.breaker.paused_until
        async with self._client:
            for call, row in self._rows.items():
                self._poller.add(WatchedCall(row, call, time.time()))
            self._poller.wake()
            retry_at = loop.time() + _RETRY
            while self._poller.calls and self._bug is None:
                await asyncio.sleep(_LOOK_EVERY)
                if loop.time() >= retry_at:
                    retry_at += _RETRY
                    self._retry()
                paused_until, before = health.breaker.paused_until, paused_until
                if self._poller.paused and self._failed and paused_until != before:
                    self._pauses += 1
                    refused = self._poller.paused is Outcome.AUTH and not self._answered
                    if refused or self._pauses >= PAUSES:
                        break
                    seconds = paused_until - loop.time()
                    self._pausing(self._account.name, self._failed, seconds)
            left = [call.reference_id for call in self._poller.calls.values()]
            await self._poller.stop(0)
        if self._bug:
            raise self._bug
        for call in left:
            if self._failed:
                self._tell(replace(self._failed, reference_id=call, asked_at=None))

    def _retry(self) -> None:
        """Poll what failed again; one call is not to wait for a `Retry-After` that is its own."""
        if not self._poller.paused and not self._poller.backlog().calls:
            for call in self._poller.idle_calls(len(self._rows)):
                self._poller.poll_now(call.id)

    async def send_status(self, reference_id: ReferenceId) -> Answer:
        """Poll a call for the poller, whose `Provider` this is."""
        answer = await self._client.send_status(reference_id)
        line = line_of(self._account.name, reference_id, answer, time.time())
        self._tries[reference_id] += 1
        if line.answered:
            self._answered, self._pauses = True, 0
        else:
            self._failed = line
        if line.outcome in _SAID or self._tries[reference_id] >= TRIES:
            self._poller.remove(self._rows[reference_id])
            self._tell(line)
        return answer


def look_up(
    config: Config,
    calls: Mapping[CallName, ReferenceId],
    write: Callable[[Sequence[Line]], None],
    pausing: Pausing,
) -> bool:
    """Look calls up, those of each account at its own pace.

    Args:
        config: the accounts.
        calls: what to ask for.
        write: takes lines as they come, in a thread: it may block, and what it raises ends all.
        pausing: see `Pausing`.

    Returns:
        False where a signal ended it: what had come by then is written.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_look_up(config, calls, write, pausing))


async def _look_up(
    config: Config,
    calls: Mapping[CallName, ReferenceId],
    write: Callable[[Sequence[Line]], None],
    pausing: Pausing,
) -> bool:
    lines: asyncio.Queue[Line | None] = asyncio.Queue()
    askers = [
        Asker(
            account,
            [asked for (name, _), asked in calls.items() if name == account.name],
            timeout=config.polling.timeout,
            tell=lines.put_nowait,
            pausing=pausing,
        )
        for account in config.accounts
    ]
    asking = asyncio.create_task(_all(askers))
    writing = asyncio.create_task(_write(lines, write))
    writing.add_done_callback(lambda _: asking.cancel())
    with handled_signals(asking.cancel):
        await asyncio.wait({asking})
        lines.put_nowait(None)
        await writing
    if asking.cancelled():
        return False
    asking.result()
    return True


async def _all(askers: Sequence[Asker]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for asker in askers:
            tasks.create_task(asker.run())


async def _write(
    lines: asyncio.Queue[Line | None], write: Callable[[Sequence[Line]], None]
) -> None:
    # In a thread: who reads the output slowly, or not at all, makes no request late.
    last = False
    while not last:
        batch = [await lines.get()]
        while not lines.empty():
            batch.append(lines.get_nowait())
        last = batch[-1] is None
        await asyncio.to_thread(write, [line for line in batch if line is not None])
