"""The loop: takes the calls of one account that are due, asks, and hands on what was found out."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterable
from itertools import islice, takewhile
from typing import Final, Protocol

import structlog

from exporter.calls import (
    EXPIRED,
    BackOff,
    CallState,
    Finished,
    Patience,
    PauseAccount,
    PollAgain,
    Verdict,
    WatchedCall,
    verdict,
)
from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.ids import ReferenceId
from exporter.polling.breaker import GOOD, MAX_PAUSE
from exporter.polling.health import AccountHealth
from exporter.polling.limiter import Limit, RateLimiter
from exporter.polling.schedule import FAILING, TICK, Backlog, Schedule
from exporter.polling.settings import PollingSettings
from exporter.polling.stats import AccountStats
from exporter.polling.timing import Timing
from exporter.polling.together import Together
from exporter.polling.way import Way

_log = structlog.get_logger(__name__)

# uvloop's clock has whole milliseconds; a shorter wait would only turn the loop once more.
_TIMER_GRAIN: Final = 0.001

# Priorities of calls that are due; those that failed come after all others.
_HINTED, _FRESH, _OFTEN_POLLED, _NOT_FOUND = range(FAILING)

# A call that was polled so often without news is less likely to have ended than a newer one.
_OFTEN: Final = 4


class Provider(Protocol):
    """Who is asked: `exporter.esms.client.EsmsClient`."""

    async def send_status(self, reference_id: ReferenceId) -> Answer:
        """Ask for a call; a failure is an answer, too."""


class Poller:
    """Polls the calls of one account.

    Args:
        account: its name.
        provider: who is asked; may be replaced by assignment while requests are under way.
        settings: the pace; may be replaced with `configure`.
        stats: where polls are counted.
        observe: takes what was found out about a call, and when (Unix time), to be committed;
            `settle` comes back once it is.
        limit: makes what keeps to the account's rate.
        clock: tells the time of the ledger, by which calls have their ages (Unix time); the
            machine's by default.
    """

    def __init__(
        self,
        account: str,
        provider: Provider,
        settings: PollingSettings,
        stats: AccountStats,
        observe: Callable[[WatchedCall, Finished | PollAgain, float], None],
        limit: Callable[[float], Limit] = RateLimiter,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.account = account
        self.provider = provider
        self.calls: dict[int, WatchedCall] = {}
        self._settings = settings
        self.stats = stats
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._schedule = Schedule(self._priority)
        self.timing = Timing(settings)
        self.health = AccountHealth(account, settings.rate_limit, limit, stats, self.calls)
        self._breaker = self.health.breaker
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._way = Way()
        self._failure: BaseException | None = None
        self._stopping = False
        self._second = 0.0
        self._clock = clock or time.time
        self._answers = Together(self._loop, self._learn_all)
        self._hastened: set[int] = set()  # to be asked for again, by calls that are being asked for
        self.failed = asyncio.Event()

    # What the service does with it.

    def configure(self, settings: PollingSettings) -> None:
        """Change the pace; calls that are scheduled keep their time."""
        self._settings = settings
        self.timing.configure(settings)
        self._breaker.set_rate_limit(settings.rate_limit)
        self.wake()

    def retry(self) -> None:
        """End a pause, because the credentials or the address have changed."""
        self._poll_again(self.health.reset())
        self.wake()

    def watch(self, call: WatchedCall, label_set: int = 0, within: float = math.inf) -> None:
        """Poll a call from now on; see `Timing.first`.

        Args:
            call: the call.
            label_set: the row of its labels: the turns of an account are shared between them.
            within: seconds in which it is to be polled, at most.
        """
        if call.id in self.calls:
            return
        call.label_set = label_set
        self.calls[call.id] = call
        self.health.added()
        self.stats.open_calls[call.state] += 1
        now = self._loop.time()
        wait = self.timing.first(call, now, self._clock())
        if self._schedule.ready > self._settings.rate_limit * self._settings.interval:
            # A first poll at once would find nothing, and be missing where calls have ended.
            wait = max(wait, self.timing.again(call, self._clock()))
        if wait > within:
            wait = within * random.random()  # noqa: S311 - no secret depends on it
        self._schedule.advance(now)
        self._schedule.add(call, now + wait)

    def hasten(self, call_id: int) -> None:
        """Poll a call next of those with its labels, or once more, if it is being polled."""
        if (call := self.calls.get(call_id)) is None:
            return
        if call.tick < 0:
            self.timing.hinted.add(call_id)
            self._hastened.add(call_id)
        elif call_id not in self.timing.hinted:
            self.timing.hinted.add(call_id)
            now = self._loop.time()
            self._schedule.advance(now)
            self._schedule.add(call, now)
            self.wake()

    def forget(self, call_id: int) -> None:
        """Stop polling a call; an answer that is under way means nothing any more."""
        if call := self.calls.pop(call_id, None):
            self._schedule.discard(call)
            self._hastened.discard(call_id)
            self.timing.hinted.discard(call_id)
            self.health.forget(call_id)
            self.stats.open_calls[call.state] -= 1

    def clear(self) -> None:
        """Stop polling all calls; answers that are under way mean nothing any more."""
        self.calls.clear()
        self._schedule = Schedule(self._priority)
        self._hastened.clear()
        self.timing.hinted.clear()
        self.health.forget_all()
        self.stats.open_calls.update(dict.fromkeys(CallState, 0))

    def spare(self, most: int) -> list[WatchedCall]:
        """Return up to `most` calls that are not being asked for."""
        idle = (call for call in self.calls.values() if call.tick >= 0)
        return list(islice(idle, most))

    def settle(self, call: WatchedCall, found: Finished | PollAgain, at: float) -> None:
        """Show what has been committed: a call's new state, or that it has finished."""
        # By its row: an account that went and came back holds the call as another object.
        if (held := self.calls.get(call.id)) is None:
            return
        if isinstance(found, Finished):
            self.forget(call.id)
            return
        self.stats.open_calls[held.state] -= 1
        held.state, held.state_since = found.state, at
        self.stats.open_calls[held.state] += 1

    def report_odd(self, call: WatchedCall, finished: Finished) -> None:
        """Log and count the fields of an answer that could not be used."""
        for field in finished.odd:
            self.stats.odd_values[field] += 1
            _log.warning(
                "odd value in the answer",
                account=self.account,
                reference_id=call.reference_id,
                field=field.value,
            )

    def refresh(self) -> None:
        """Bring the stats up to date that are not worth it before a scrape."""
        oldest = next(iter(self.calls.values()), None)
        # As the machine's clock has it, which may be another one.
        behind = round(time.time() - self._clock())
        self.stats.oldest_open = oldest.first_watched + behind if oldest else 0.0

    def wake(self) -> None:
        """Start as many requests as may be sent now, and see to the next ones."""
        while len(self._tasks) < self._settings.max_concurrency and (call := self._take()):
            task = self._loop.create_task(self._work(call))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    async def stop(self, within: float) -> None:
        """Send nothing more, and wait for what is under way, for `within` seconds at most."""
        self._stopping = True
        if self._timer:
            self._timer.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=within)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._answers.flush()

    @property
    def failure(self) -> BaseException | None:
        """What ended a request's task unexpectedly, which is a bug; `failed` is set then."""
        return self._failure

    @property
    def patience(self) -> Patience:
        """How long calls are asked for."""
        return self._settings.patience

    def next_due(self, call: WatchedCall) -> float | None:
        """Return when a call is to be asked for (Unix time); None while it is."""
        if call.tick < 0:
            return None
        return time.time() + call.tick * TICK - self._loop.time()

    def backlog(self) -> Backlog:
        """Return which calls are due and not polled yet."""
        return self._schedule.backlog(self._loop.time())

    # Requests that are not polls: see `exporter.polling.aside`.

    @property
    def stopping(self) -> bool:
        """Whether nothing more is sent."""
        return self._stopping

    def take_turn(self) -> float:
        """Take a turn for another request than a poll, if there is one now.

        Returns:
            0 where there is, and it is taken: `answered` has to follow. Else the seconds until
            there may be one, infinite where that is not known.
        """
        now = self._loop.time()
        wait = math.inf if self._stopping else self._breaker.wait(now)
        if wait <= 0:
            self._breaker.sent(now)
            self._way.given()
        else:
            self._way.wanted(now, wait)
        return max(0.0, wait)

    def answered(self, request: str, answer: Answer, sent_at: float) -> None:
        """Account for the answer to such a request, which was sent at a time of the loop."""
        now = self._loop.time()
        self._poll_again(self.health.heard(request, answer, sent_at, now, time.time()))
        self.wake()

    # The loop.

    async def _work(self, call: WatchedCall | None) -> None:
        # One task goes on from call to call, for as long as one is due: making a task for each
        # would cost more than all that is ours in a poll.
        while call:
            await self._poll(call)
            call = self._take()
        # Before its last answer is worked off, which may start another in its place.
        if task := asyncio.current_task():
            self._tasks.discard(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._failure = error
            self.failed.set()

    def _take(self) -> WatchedCall | None:
        """Return the call to ask for now; where there is none, see to being woken for the next."""
        if self._stopping:
            return None
        now = self._loop.time()
        if (due := self._schedule.next_due()) is None:
            return None
        # The pace is asked where a call is due alone: it may reserve turns, which others wait for.
        if (wait := due - now if due > now else self._breaker.wait(now)) > 0:
            self._wake_at(now + wait)
            return None
        if now < self._way.until and not self._breaker.half_open:
            self._wake_at(self._way.until)
            return None
        doubtful = self._breaker.doubtful
        if doubtful and self._breaker.half_open and (witness := self._witness()):
            self._schedule.discard(witness)
            found: tuple[WatchedCall, float] | None = (witness, now)
        else:
            found = self._schedule.pop(now, trial=doubtful)
        if found is None:
            if (due := self._schedule.next_due()) is not None:
                self._wake_at(due)
            return None
        call, due = found
        self._breaker.sent(now)
        self._way.polled()
        self.stats.lags.observe(now - due if now > due else 0.0)
        return call

    def _witness(self) -> WatchedCall | None:
        """Return a call that was answered lately, due or not: it shows best how the account is."""
        for call in random.sample(lately := self.health.answered_lately, len(lately)):
            still_watched = self.calls.get(call.id) is call
            if still_watched and call.tick >= 0 and call.id not in self.health.failures:
                return call
        return None

    def _wake_at(self, when: float) -> None:
        if when == math.inf:
            return
        if self._timer:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer_at = when
        wait = max(_TIMER_GRAIN, when - self._loop.time())
        self._timer = self._loop.call_later(wait, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.wake()

    async def _poll(self, call: WatchedCall) -> None:
        sent_at = self._loop.time()
        answer = await self.provider.send_status(call.reference_id)
        self._answers.add((call, answer, sent_at))
        if not (self._breaker.healthy and answer.outcome in GOOD):
            # Whatever is not well is to hold up the very next request.
            self._answers.flush()

    def _learn_all(self, answers: list[tuple[WatchedCall, Answer, float]]) -> None:
        now, wall = self._loop.time(), self._clock()
        if (second := wall // 1) != self._second:
            self._second = second
        try:
            for call, answer, sent_at in answers:
                self._learn(call, answer, sent_at, now, wall)
            # Calls have a new time, and a good answer may have opened the account to others.
            self.wake()
        except Exception as error:  # noqa: BLE001 - a bug, and nobody awaits this
            self._failure = error
            self.failed.set()

    def _learn(
        self, call: WatchedCall, answer: Answer, sent_at: float, now: float, wall: float
    ) -> None:
        before = call.last_polled
        call.polls += 1
        call.last_polled = self._second
        decided = verdict(call, answer, wall, self._settings.patience)
        outcome = decided.outcome if isinstance(decided, BackOff) else answer.outcome
        failed = call.id in self.health.failures
        again = self.health.answered(call, answer, outcome, sent_at, now, time.time())
        if again:
            self._poll_again(again)
        if self.calls.get(call.id) is call:
            self._apply(call, decided, before, now, wall, failed=failed)
        elif call.id not in self.calls:
            self.health.forget(call.id)  # removed while it was polled
        if not self._breaker.healthy:
            self._expire(now, wall)

    def _poll_again(self, rows: Iterable[int]) -> None:
        """Poll calls now that failed because of their account."""
        now = self._loop.time()
        for row in rows:
            if (call := self.calls.get(row)) and call.tick >= 0:
                self._schedule.add(call, now)

    def _expire(self, now: float, wall: float) -> None:
        """Give up old calls of an account whose credentials have been refused for long."""
        since = self._breaker.open_since
        if self._breaker.reason is not Outcome.AUTH or since is None or now - since < MAX_PAUSE:
            return
        limit = wall - self._settings.patience.give_up_after
        # The oldest come first.
        old = takewhile(lambda call: call.first_watched <= limit, self.calls.values())
        for call in list(old):
            if call.tick >= 0:
                self._schedule.discard(call)
                self._observe(call, EXPIRED, wall)

    def _apply(
        self,
        call: WatchedCall,
        decided: Verdict,
        before: float,
        now: float,
        wall: float,
        *,
        failed: bool,
    ) -> None:
        if isinstance(decided, Finished):
            self.timing.learn(call, decided, before, wall, failed=failed)
            self._observe(call, decided, wall)
            self.report_odd(call, decided)
            return
        if isinstance(decided, PollAgain):
            # To the second, as `last_polled`: calls share the number, and in the ledger too.
            self._observe(call, decided, call.last_polled)
            self.health.answered_lately.append(call)
        wait = self.timing.again(call, wall, self.health.failures.get(call.id, 0))
        if isinstance(decided, PauseAccount):
            if not self.health.all_failed or self._breaker.open_since is not None:
                wait = max(wait, min(decided.retry_after or 0.0, MAX_PAUSE))
            # Else no other call can show whether the account may be polled.
            if self.health.all_failed and now < self._breaker.paused_until:
                wait = 0.0
        if call.id in self._hastened:
            self._hastened.discard(call.id)
            wait = 0.0
        else:
            self.timing.hinted.discard(call.id)
        self._schedule.add(call, now + wait)

    def _priority(self, call: WatchedCall) -> int:
        failures = self.health.failures.get(call.id, 0)
        hinted = call.id in self.timing.hinted
        if failures:
            return FAILING + (0 if hinted else min(failures, 3))
        if hinted:
            return _HINTED
        if call.state is CallState.NOT_FOUND:
            return _NOT_FOUND
        return _FRESH if call.polls < _OFTEN else _OFTEN_POLLED
