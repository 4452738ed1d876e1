"""Whether an account may be polled, and which of its calls failed: learnt from every answer."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from exporter.calls import WatchedCall
from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.polling.breaker import (
    GOOD,
    OUTAGE,
    REFUSAL,
    REFUSED,
    Change,
    CircuitBreaker,
    Witness,
)
from exporter.polling.limiter import Limit
from exporter.polling.stats import AccountStats

_log = structlog.get_logger(__name__)

_NONE: Final[list[int]] = []

_WITNESSES: Final = 16


class AccountHealth:
    """Feeds the circuit breaker; shows and logs when the account is paused and when it is resumed.

    Args:
        account: its name.
        rate_limit: requests per second.
        limit: makes the rate limiter.
        stats: where polls are counted.
        calls: the calls that are watched, by row: a live mapping, shared by reference.

    Attributes:
        breaker: whether the account may be polled now.
        failures: polls in a row that failed, by row, of calls of which there are any.
        answered_lately: calls with a good answer that have not finished: the best witnesses.
        paused_by: the answer that the last pause began with.
    """

    def __init__(
        self,
        account: str,
        rate_limit: float,
        limit: Callable[[float], Limit],
        stats: AccountStats,
        calls: Mapping[int, WatchedCall],
    ) -> None:
        self._account = account
        self._stats = stats
        self._calls = calls
        self._loop = asyncio.get_running_loop()
        self.breaker = CircuitBreaker(rate_limit, _jitter, limit)
        self.failures: dict[int, int] = {}
        self._throttled: set[int] = set()  # calls whose last poll was throttled
        self.answered_lately: deque[WatchedCall] = deque(maxlen=_WITNESSES)
        self._suspects: list[int] = []  # calls that began to fail since the last good answer
        self._failing_requests: set[str] = set()  # those that are no polls
        self.paused_by: Answer | None = None

    @property
    def paused(self) -> Outcome | None:
        """Why the account is not polled now, if it is not."""
        return self.breaker.reason

    @property
    def paused_until(self) -> float | None:
        """When the pause ends (Unix time), if there is one."""
        if self.breaker.reason is None:
            return None
        return time.time() + max(0.0, self.breaker.paused_until - self._loop.time())

    @property
    def all_failed(self) -> bool:
        """Whether there is no call left that did not fail."""
        return len(self.failures) >= len(self._calls)

    def reset(self) -> list[int]:
        """End a pause, because the credentials or the address have changed.

        Returns:
            The rows of the calls that failed with the old ones.
        """
        self.breaker.reset(self._loop.time())
        self._stats.paused_until = 0.0
        failing = list(self.failures)
        self.forget_all()
        return failing

    def added(self) -> None:
        """Account for a call that is watched from now on.

        It ends a pause that began with too few different calls, because there were no others.
        """
        reason = self.breaker.reason
        if reason and len(self._suspects) < (REFUSAL if reason in REFUSED else OUTAGE):
            self.breaker.end_pause()
            self._stats.paused_until = time.time()

    def forget(self, call_id: int) -> None:
        """Forget a call that is not watched any more."""
        if self.failures:
            self.failures.pop(call_id, None)
            self._throttled.discard(call_id)

    def forget_all(self) -> None:
        """Forget all calls."""
        self.failures.clear()
        self._throttled.clear()
        self._suspects.clear()
        self.answered_lately.clear()

    def answered(
        self,
        call: WatchedCall,
        answer: Answer,
        outcome: Outcome,
        sent_at: float,
        now: float,
        wall: float,
    ) -> list[int]:
        """Account for the answer to a poll.

        Args:
            call: the call, watched still.
            answer: the provider's, or the failure.
            outcome: of the request.
            sent_at: when it was sent, by the loop's clock.
            now: that clock.
            wall: Unix time.

        Returns:
            The rows of calls that are to be polled again: they failed because of the account.
        """
        self._stats.polls.count(outcome, answer.code, now - sent_at)
        if outcome in GOOD:
            self._stats.last_success = wall
            if self.breaker.healthy and not self.failures:
                self.breaker.good(now)
                return _NONE
            self.failures.pop(call.id, None)
            if call.id in self._throttled:
                self._throttled.discard(call.id)
                self.breaker.recovered(call.id, now)
            witness = Witness.RELIABLE
        else:
            witness = self._fail(call, outcome, now)
        return self._adapt(answer, outcome, sent_at, now, wall, witness)

    def heard(
        self, request: str, answer: Answer, sent_at: float, now: float, wall: float
    ) -> list[int]:
        """Account for the answer to another request than a poll, which is counted elsewhere.

        Args:
            request: which; one that keeps failing alone says nothing about the account.
            answer: the provider's, or the failure.
            sent_at: when it was sent, by the loop's clock.
            now: that clock.
            wall: Unix time.

        Returns:
            As `answered`.
        """
        witness = Witness.RELIABLE
        if answer.outcome in GOOD:
            self._failing_requests.discard(request)
        else:
            quiet = self.all_failed and self.breaker.is_quiet(now)
            if request in self._failing_requests and not quiet:
                witness = Witness.SICK
            self._failing_requests.add(request)
        return self._adapt(answer, answer.outcome, sent_at, now, wall, witness)

    def _fail(self, call: WatchedCall, outcome: Outcome, now: float) -> Witness:
        failures = self.failures.get(call.id, 0)
        self.failures[call.id] = failures + 1
        if outcome is Outcome.THROTTLED:
            self._throttled.add(call.id)
        else:
            self._throttled.discard(call.id)
        if not failures:
            self._suspects.append(call.id)
        if self.all_failed and self.breaker.is_quiet(now):
            return Witness.RELIABLE
        if failures:
            return Witness.SICK
        return Witness.RELIABLE if call in self.answered_lately else Witness.WEAK

    def _adapt(
        self,
        answer: Answer,
        outcome: Outcome,
        sent_at: float,
        now: float,
        wall: float,
        witness: Witness,
    ) -> list[int]:
        breaker = self.breaker
        was = breaker.reason
        change = breaker.answered(outcome, answer.retry_after, sent_at, now, witness)
        if answer.code is not None and Outcome.AUTH not in (outcome, breaker.reason):
            self._stats.authorized = True
        if change is Change.OPENED:
            self.paused_by = answer
            if outcome is Outcome.AUTH:
                self._stats.authorized = False
            self._stats.paused_until = wall + breaker.paused_until - now
            if was is not breaker.reason:
                _log.warning(
                    "account paused",
                    account=self._account,
                    reason=outcome.value,
                    code=answer.code,
                    message=answer.message,
                    seconds=round(breaker.paused_until - now, 1),
                )
        elif change is Change.CLOSED and was is not None:
            self._stats.paused_until = 0.0
            _log.info("account resumed", account=self._account, reason=was.value)
        if outcome not in GOOD or breaker.half_open:
            return _NONE
        suspects, self._suspects = self._suspects, []
        if change is not Change.CLOSED:
            return _NONE  # others were answered: it was the calls' own fault
        # Those that fail again are sick: they are witnesses no more, until they have a good answer.
        return suspects


def _jitter() -> float:
    return 0.9 + 0.2 * random.random()  # noqa: S311 - no secret depends on it
