"""The poll loop of an account: poll the calls that are due, and apply the verdicts."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from itertools import takewhile
from typing import Final, TypeAlias

import structlog

from exporter.calls import (
    EXPIRED,
    BackOff,
    CallState,
    Finished,
    GiveUpPolicy,
    PollAgain,
    Refused,
    Status,
    Verdict,
    WatchedCall,
    verdict,
)
from exporter.config import AccountConfig, PollingConfig
from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.ids import Kind, ReferenceId
from exporter.polling.circuit_breaker import GOOD, MAX_PAUSE, CircuitBreaker
from exporter.polling.intervals import PollIntervals
from exporter.polling.rate_limiter import RateLimiter
from exporter.polling.stats import AccountStats
from exporter.polling.timing_wheel import FAILING, TICK, Backlog, TimingWheel

_log = structlog.get_logger(__name__)

# uvloop's clock has whole milliseconds; a shorter wait would only wake the loop too early.
_TIMER_GRAIN: Final = 0.001

# Seconds between checks for a free slot: the short interval while a trial is in flight, at most the
# long one, because a pause may end early.
_LOOK_INTERVAL: Final = 0.01
_MAX_LOOK_INTERVAL: Final = 1.0

# Priorities of due calls; calls whose last poll failed come after all others.
_HINTED, _FRESH, _OFTEN_POLLED, _NOT_FOUND = range(FAILING)

# A call with so many polls is less likely to have ended than a newer one.
_OFTEN: Final = 4

Send: TypeAlias = Callable[[ReferenceId, Kind], Awaitable[Answer]]
"""Polls a call or a message; failures are returned as answers."""


class Poller:
    """Polls the calls of one account.

    Args:
        observe: receives a call, its verdict and the time (Unix time), to commit them; it calls
            `apply_committed` after the commit.
        fail: receives an unexpected exception, a bug: the process has to exit.
        clock: returns the time of the ledger, for the ages of calls (Unix time).
        machine_clock: returns the time of the machine, for metrics (Unix time).

    Attributes:
        calls: the open calls, by row, oldest first.
        intervals: the poll intervals of each kind, made when it is first polled.
        give_up: when to stop polling calls.
    """

    def __init__(
        self,
        config: AccountConfig,
        polling: PollingConfig,
        send: Send,
        stats: AccountStats,
        observe: Callable[[WatchedCall, Finished | PollAgain, float], None],
        fail: Callable[[BaseException], None],
        clock: Callable[[], float] = time.time,
        machine_clock: Callable[[], float] = time.time,
    ) -> None:
        self.account, self.stats = config.name, stats
        self.calls: dict[int, WatchedCall] = {}
        self.intervals = defaultdict[Kind, PollIntervals](lambda: PollIntervals(self._polling))
        self._send, self._observe, self._fail = send, observe, fail
        self._clock, self._machine_clock = clock, machine_clock
        self._loop = asyncio.get_running_loop()
        self._wheel = TimingWheel(self._priority)
        self._limiter = RateLimiter(config.rate_limit)
        self.breaker = CircuitBreaker(config.name, self._limiter, stats, self.calls)
        self._answers: list[tuple[WatchedCall, Answer, float]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._stopping = False
        self._second = 0.0
        self._last_added = -math.inf  # when the last new call was added
        self._hinted: set[int] = set()  # calls with a hint that they have ended
        self._hinted_in_flight: set[int] = set()  # calls hinted during a poll: poll again
        self.configure(config, polling)

    # Calls.

    def add(self, calls: Iterable[WatchedCall], max_wait: float = math.inf) -> None:
        """Start polling calls within `max_wait` seconds.

        Poll a new call at once or, with adaptive intervals, when it has probably ended. Poll others
        at a random time within their interval. Label sets share the rate evenly.
        """
        # Read the clocks once: reading them takes as long as all else here.
        now, wall = self._loop.time(), self._clock()
        self._wheel.advance(now)
        for call in calls:
            if call.id in self.calls:
                continue
            self.calls[call.id] = call
            self.breaker.added(now)
            self.stats.polls_of(call.kind)  # expose zeros before the first message is polled
            self.stats.open[call.kind][call.state] += 1
            wait = self._first_wait(call, now, wall)
            if self._wheel.ready > self._config.rate_limit * self._polling.interval:
                # Overloaded: an immediate poll would find no result, and delay those of ended
                # calls.
                wait = max(wait, self._next_wait(call, wall))
            if wait > max_wait:
                wait = max_wait * _chance()
            self._wheel.add(call, now + wait)

    def poll_now(self, call_id: int) -> None:
        """Poll a call before others of its label set; poll it again if a poll is in flight."""
        if (call := self.calls.get(call_id)) is None:
            return
        was_hinted = call_id in self._hinted
        self._hinted.add(call_id)
        if call.tick < 0:
            self._hinted_in_flight.add(call_id)
        elif not was_hinted:
            now = self._loop.time()
            self._wheel.advance(now)
            self._wheel.add(call, now)
            self.wake()

    def remove(self, call_id: int) -> None:
        """Stop polling a call, and ignore the answer to a poll in flight."""
        if call := self.calls.pop(call_id, None):
            self._wheel.discard(call)
            self._hinted_in_flight.discard(call_id)
            self._hinted.discard(call_id)
            self.breaker.forget(call_id)
            self.stats.open[call.kind][call.state] -= 1

    def apply_committed(self, call: WatchedCall, found: Finished | PollAgain, at: float) -> None:
        """Apply a committed verdict: update the state of the call, or remove it."""
        # Compare rows: after its account was removed and added, the call is another object.
        if (held := self.calls.get(call.id)) is None:
            return
        if isinstance(found, Finished):
            self.remove(call.id)
            return
        open_calls = self.stats.open[held.kind]
        open_calls[held.state] -= 1
        held.state, held.state_since = found.state, at
        open_calls[held.state] += 1

    def next_due(self, call: WatchedCall) -> float | None:
        """Return when a call is due (Unix time); None while it is being polled."""
        if call.tick < 0:
            return None
        return self._machine_clock() + call.tick * TICK - self._loop.time()

    def learn(
        self,
        call: WatchedCall,
        finished: Finished,
        at: float,
        *,
        last_seen: float = 0.0,
        notified: bool = False,
    ) -> None:
        """Learn the duration of a finished call, and count the invalid fields of its answer.

        The result was known `at`, and an answer showed the call as open at `last_seen`, 0 for never
        (Unix times). `notified`: a callback reported the end; assumed for a hinted call.
        """
        age, intervals = at - call.first_watched, self.intervals[call.kind]
        if finished.status is Status.EXPIRED:
            intervals.learn(age, math.inf, at)
        # Calls that the provider does not know have no duration.
        elif finished.status is not Status.NOT_FOUND:
            seen = max(call.state_since, last_seen) - call.first_watched
            intervals.learn(seen, age, at, notified=notified or call.id in self._hinted)
        for field in finished.odd:
            self.stats.odd_values[field] += 1
            _log.warning(
                "unexpected value in answer",
                account=self.account,
                reference_id=call.reference_id,
                field=field.value,
            )

    # The account.

    def backlog(self) -> Backlog:
        """Return the number of calls that are due and not polled yet, and the lag."""
        return self._wheel.backlog(self._loop.time())

    def update_oldest_open(self) -> None:
        """Update `oldest_open`, which only scrapes need."""
        oldest = next(iter(self.calls.values()), None)
        behind = round(self._machine_clock() - self._clock())
        self.stats.oldest_open = oldest.first_watched + behind if oldest else 0.0

    def configure(
        self, config: AccountConfig, polling: PollingConfig, send: Send | None = None
    ) -> None:
        """Change intervals and limits. Scheduled polls keep their time.

        A new `send`, with other credentials or another address, ends a pause.
        """
        self._config, self._polling = config, polling
        self.give_up = GiveUpPolicy(polling.not_found_grace, polling.give_up_after)
        for intervals in self.intervals.values():
            intervals.configure(polling)
        self._limiter.set_rate(config.rate_limit)
        if send is not None:
            self._send = send
            self.retry()
        self.wake()

    def allow_until(self, until: float) -> None:
        """Send no requests from a loop time on: another exporter may then poll the account."""
        self._limiter.allow_until(until)
        self.wake()

    def retry(self) -> None:
        """End a pause, and poll the failed calls."""
        self._reschedule_now(self.breaker.reset(self._loop.time()))
        self.wake()

    async def request(
        self,
        send: Callable[[], Awaitable[Answer]],
        timeout: float,
        wanted: Callable[[], bool] = lambda: True,
    ) -> tuple[Answer, float] | None:
        """Send a request other than a poll, within the rate limit and not during a pause.

        Wait up to `timeout` seconds for a slot, while it is wanted. If only such requests keep
        failing, the account is not at fault. Return the answer and its duration in seconds; None if
        no request was sent.
        """
        until = self._loop.time() + timeout
        if (now := await self._take_slot(self.breaker.wait, until, wanted)) is None:
            return None
        self.breaker.sent()
        answer = Answer(Outcome.CONNECTION, message="cut off")
        try:
            answer = await send()
        finally:
            answered = self._loop.time()
            self._reschedule_now(self.breaker.requested(answer, now, answered))
            self.wake()
        return answer, answered - now

    async def wait_for_slot(self) -> None:
        """Wait for a slot of the rate limit, for a request that is sent even during a pause."""
        await self._take_slot(self._limiter.wait, math.inf, lambda: True)

    async def _take_slot(
        self, wait_from: Callable[[float], float], until: float, wanted: Callable[[], bool]
    ) -> float | None:
        """Wait for a slot for a request other than a poll; return its time, or None on timeout."""
        while wanted() and not self._stopping:
            now = self._loop.time()
            if (wait := wait_from(now)) <= 0:
                self._limiter.sent(now, poll=False)
                return now
            self._limiter.hold_slot(now, wait)
            if now >= until:
                return None
            pause = _LOOK_INTERVAL if wait == math.inf else min(wait, _MAX_LOOK_INTERVAL)
            await asyncio.sleep(min(until - now, pause))
        return None

    async def stop(self, timeout: float) -> None:
        """Stop sending requests, and wait up to `timeout` seconds for polls in flight."""
        self._stopping = True
        if self._timer:
            self._timer.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._process_answers()

    # The loop.

    def wake(self) -> None:
        """Start the polls that may be sent now, and set the timer for the next one."""
        while len(self._tasks) < self._config.max_concurrency and (call := self._next_call()):
            task = self._loop.create_task(self._worker(call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _worker(self, call: WatchedCall | None) -> None:
        # A task polls call after call while calls are due: creating a task per call would cost more
        # than the rest of a poll.
        try:
            while call:
                await self._poll(call)
                # More tasks than allowed are left where the limit was lowered.
                spare = len(self._tasks) > self._config.max_concurrency
                call = None if spare else self._next_call()
        except Exception as error:  # noqa: BLE001 - a bug, and nothing awaits this
            self._fail(error)
        # Free the slot before the last answer is processed, which may start another task.
        if task := asyncio.current_task():
            self._tasks.discard(task)

    async def _poll(self, call: WatchedCall) -> None:
        sent_at = self._loop.time()
        answer = await self._send(call.reference_id, call.kind)
        # Process the answers of one iteration of the event loop as a batch. One by one takes twice
        # as long, because the HTTP client in between evicts the CPU caches.
        if not self._answers:
            self._loop.call_soon(self._process_answers)
        self._answers.append((call, answer, sent_at))
        if not (self.breaker.healthy and answer.outcome in GOOD):
            self._process_answers()  # a failure must stop the next request

    def _next_call(self) -> WatchedCall | None:
        """Return the call to poll now, or set the timer for the next one."""
        if self._stopping or (due := self._wheel.next_due()) is None:
            return None
        now, breaker = self._loop.time(), self.breaker
        if due > now:
            wait = due - now
        elif breaker.half_open:
            wait = breaker.wait(now)
        else:
            wait = self._limiter.wait_to_poll(now)
        if wait > 0:
            self._wake_at(now + wait)
            return None
        if breaker.healthy or not breaker.doubtful:
            found = self._wheel.pop(now)
        elif breaker.half_open and (witness := self._witness()):
            self._wheel.discard(witness)
            found = witness, now
        else:
            found = self._wheel.pop_for_trial(now)
        if found is None:
            if (due := self._wheel.next_due()) is not None:
                self._wake_at(due)
            return None
        call, due = found
        self._limiter.sent(now, poll=True)
        breaker.sent()
        self.stats.lags.observe(now - due if now > due else 0.0)
        return call

    def _witness(self) -> WatchedCall | None:
        """Return a call with a recent good answer, due or not: the most reliable for a trial."""
        for call in random.sample(lately := self.breaker.answered_lately, len(lately)):
            is_open = self.calls.get(call.id) is call
            if is_open and call.tick >= 0 and call.id not in self.breaker.failures:
                return call
        return None

    def _wake_at(self, when: float) -> None:
        if when == math.inf or (self._timer and self._timer_at <= when):
            return
        if self._timer:
            self._timer.cancel()
        self._timer_at = when
        wait = max(_TIMER_GRAIN, when - self._loop.time())
        self._timer = self._loop.call_later(wait, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.wake()

    def _process_answers(self) -> None:
        answers, self._answers = self._answers, []
        if not answers:
            return
        try:
            self._process(answers)
            # Calls are due again, and a good answer may have closed the breaker.
            self.wake()
        except Exception as error:  # noqa: BLE001 - a bug, and nothing awaits this
            self._fail(error)

    def _process(self, answers: list[tuple[WatchedCall, Answer, float]]) -> None:
        now, wall, machine_wall = self._loop.time(), self._clock(), self._machine_clock()
        # Calls share the object, to save memory.
        if (second := wall // 1) != self._second:
            self._second = second
        breaker, stats = self.breaker, self.stats
        for call, answer, sent_at in answers:
            last_seen, call.last_polled = call.last_polled, self._second
            call.polls += 1
            decided = verdict(call, answer, wall, self.give_up)
            outcome = decided.outcome if isinstance(decided, BackOff) else answer.outcome
            stats.polls_of(call.kind).count(outcome, answer.code, now - sent_at)
            if good := outcome in GOOD:
                stats.last_success = machine_wall
            if good and breaker.healthy and not breaker.failures:
                breaker.good_at = now
            else:
                if call.id in breaker.failures:
                    last_seen = 0.0  # the last poll failed
                said = answer._replace(outcome=outcome)
                self._reschedule_now(breaker.polled(call, said, sent_at, now))
            if self.calls.get(call.id) is call:
                self._apply_verdict(call, decided, last_seen, now, wall)
            elif call.id not in self.calls:
                breaker.forget(call.id)  # removed while it was polled
            if not breaker.healthy:
                self._expire(now, wall)

    def _apply_verdict(
        self, call: WatchedCall, decided: Verdict, last_seen: float, now: float, wall: float
    ) -> None:
        if isinstance(decided, Finished):
            self.learn(call, decided, wall, last_seen=last_seen)
            self._observe(call, decided, wall)
            return
        breaker = self.breaker
        if isinstance(decided, PollAgain):
            # `last_polled` has full seconds: many calls share the value.
            self._observe(call, decided, call.last_polled)
            breaker.answered_lately.append(call)
        wait = self._next_wait(call, wall)
        if isinstance(decided, Refused):
            if not breaker.all_failed or breaker.open_since is not None:
                wait = max(wait, min(decided.retry_after or 0.0, MAX_PAUSE))
            # No other call can show whether the account can be polled.
            if breaker.all_failed and now < breaker.paused_until:
                wait = 0.0
        if self._hinted:
            if call.id in self._hinted_in_flight:
                self._hinted_in_flight.discard(call.id)
                wait = 0.0
            else:
                self._hinted.discard(call.id)
        self._wheel.add(call, now + wait)

    def _reschedule_now(self, rows: Iterable[int]) -> None:
        """Poll calls at once."""
        now = self._loop.time()
        for row in rows:
            if (call := self.calls.get(row)) and call.tick >= 0:
                self._wheel.add(call, now)

    def _expire(self, now: float, wall: float) -> None:
        """Finish old calls as expired while the credentials are refused."""
        since = self.breaker.open_since
        if self.breaker.reason is not Outcome.AUTH or since is None or now - since < MAX_PAUSE:
            return
        limit = wall - self.give_up.give_up_after
        # `calls` is ordered by age.
        old = takewhile(lambda call: call.first_watched <= limit, self.calls.values())
        for call in list(old):
            if call.tick >= 0:
                self._wheel.discard(call)
                self._observe(call, EXPIRED, wall)

    def _first_wait(self, call: WatchedCall, now: float, wall: float) -> float:
        if call.state is not CallState.NEW:
            return self._next_wait(call, wall) * _chance()
        silence, self._last_added = now - self._last_added, now
        # Poll the first call after a silence at once, to see whether the account can be polled.
        if silence >= self._polling.max_interval:
            return 0.0
        age = max(0.0, wall - call.first_watched)
        return self.intervals[call.kind].first(age, _chance())

    def _next_wait(self, call: WatchedCall, wall: float) -> float:
        age, failures = wall - call.first_watched, self.breaker.failures.get(call.id, 0)
        return self.intervals[call.kind].next(age if age > 0 else 0.0, failures, _chance())

    def _priority(self, call: WatchedCall) -> int:
        failures = self.breaker.failures.get(call.id, 0)
        hinted = call.id in self._hinted
        if failures:
            return FAILING + (0 if hinted else min(failures, 3))
        if hinted:
            return _HINTED
        if call.state is CallState.NOT_FOUND:
            return _NOT_FOUND
        return _FRESH if call.polls < _OFTEN else _OFTEN_POLLED


def _chance() -> float:
    return random.random()  # noqa: S311 - no secret depends on it
