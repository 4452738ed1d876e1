"""The circuit breaker: pauses the polls of an account while the provider refuses or fails.

A failed request can have two causes: the call, if the provider never answers it properly, or the
account: refused credentials, throttling, an outage. Consecutive failures of different calls point
to the account. Times are monotonic seconds, unless they are Unix times.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final

import structlog

from exporter.backoff import ExponentialBackoff
from exporter.calls import WatchedCall
from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.polling.rate_limiter import RateLimiter
from exporter.polling.stats import AccountStats

MAX_PAUSE: Final = 900.0
"""Maximum seconds of a pause, also with `Retry-After`."""

OUTAGE: Final = 5
"""Consecutive failures of different calls that open the breaker."""

REFUSAL: Final = 2
"""The same for refused credentials and throttling. One call is not enough evidence."""

RECHECK: Final = 3.0
"""Seconds from the first refusal to the poll of another call, which confirms or refutes it."""

GOOD: Final = frozenset({Outcome.OK, Outcome.NOT_FOUND})
"""Outcomes that prove that the account can be polled."""

_REFUSED: Final = frozenset({Outcome.AUTH, Outcome.THROTTLED})

# Failed trials with weak evidence before the pause grows. If nine calls in ten always fail, so many
# failures in a row have a probability of 1 in 500.
_WEAK_TRIALS: Final = 60

# Maximum length of a run of failures to remember: a longer run was an outage.
_LONGEST_RUN: Final = 30

# Half-life, in seconds, of the length of the longest run of failures that ended with a good answer.
_HALF_LIFE: Final = 300.0

# After so many seconds without a good answer, repeated failures are evidence if all calls fail.
_QUIET: Final = 60.0

# If so many throttled calls have good answers within so many seconds, the account was throttled.
_RECOVERED_CALLS: Final = 5
_RECOVERED_WITHIN: Final = 60.0

_WITNESSES: Final = 16
_AUTH: Final = ExponentialBackoff(30.0, 900.0)
_DOWN: Final = ExponentialBackoff(5.0, 120.0)

_log = structlog.get_logger(__name__)


class Evidence(Enum):
    """How far a failed request shows that the account is at fault."""

    SICK = 0  # not at all: the call failed before, while others had good answers
    WEAK = 1  # a little: the call itself may be at fault
    RELIABLE = 2  # the call had a good answer lately, or there is no other call to poll


class CircuitBreaker:
    """Decides whether an account is polled: closed, open (paused), or half-open (on trial).

    It starts half-open: it sends one request at a time until an answer is good. It opens when
    `REFUSAL` different calls in a row are refused, or `OUTAGE` fail in any way. The last of them is
    a trial, and so is the request after each pause. After runs of failures that ended with a good
    answer, weak evidence needs more failures: more by twice the length of the longest recent run.

    Args:
        limiter: is slowed down when the provider throttles.
        stats: receives `authorized` and `pause_ends`.
        calls: the open calls, by row: a live mapping, shared by reference.
        jitter: returns a factor around 1, to spread the ends of pauses.

    Attributes:
        half_open: one request at a time is sent until an answer is good.
        healthy: the breaker is closed, and a good answer changes nothing.
        good_at: time of the last good answer.
        open_since: start of the first of consecutive pauses; None if the breaker is not open.
        paused_until: end of the current or last pause.
        paused_by: the answer that caused the pause; None if the breaker is not open.
        failures: number of consecutive failed polls, by row; only calls whose last poll failed.
        answered_lately: open calls with a good answer, to poll in trials.
    """

    def __init__(
        self,
        account: str,
        limiter: RateLimiter,
        stats: AccountStats,
        calls: Mapping[int, WatchedCall],
        jitter: Callable[[], float] = lambda: random.uniform(0.9, 1.1),  # noqa: S311 - no secret
    ) -> None:
        self._account, self._limiter, self._stats = account, limiter, stats
        self._calls, self._jitter = calls, jitter
        self.half_open = True
        self.healthy = False
        self.good_at = -math.inf
        self.failures: dict[int, int] = {}
        self.answered_lately: deque[WatchedCall] = deque(maxlen=_WITNESSES)
        self._trial_under_way = False
        # The current run of failures, by outcome and whether the evidence is reliable.
        self._run: Counter[tuple[Outcome, bool]] = Counter()
        self._longest_run = 0.0  # of the runs that lately ended with a good answer
        self._contradicted_at = -math.inf  # when a good answer last followed a refusal
        self._answers_from = -math.inf  # ignore answers to requests sent before
        self._throttled: set[int] = set()  # calls whose last poll was throttled
        self._recovered: dict[int, float] = {}  # when throttled calls had good answers
        self._suspects: list[int] = []  # calls that began to fail since the last good answer
        self._request_failed = False  # whether the last request other than a poll failed
        self._close()

    def _close(self) -> None:
        self._run.clear()
        self._level = self._failed_trials = 0  # since the breaker opened
        self._retry_after = 0.0  # the longest in the run
        self.open_since: float | None = None
        self.paused_by: Answer | None = None
        self.paused_until = -math.inf

    @property
    def reason(self) -> Outcome | None:
        """The outcome that opened the breaker; None if it is not open."""
        return self.paused_by.outcome if self.paused_by else None

    @property
    def all_failed(self) -> bool:
        """Whether all open calls failed at their last poll."""
        return len(self.failures) >= len(self._calls)

    @property
    def doubtful(self) -> bool:
        """Whether consecutive failures require a careful choice of the next call."""
        return self._run.total() >= (1 if self.half_open else REFUSAL)

    def wait(self, now: float) -> float:
        """Return the seconds until the next request; 0 or less if it may be sent now.

        Infinite while a trial is in flight.
        """
        if self._trial_under_way:
            return math.inf
        return max(self.paused_until - now, self._limiter.wait(now))

    def sent(self) -> None:
        self._trial_under_way = self.half_open

    def reset(self, now: float) -> list[int]:
        """Go half-open at once, because the credentials or the address have changed.

        Return the rows of the failed calls, to poll them again.
        """
        self._close()
        self._answers_from = now
        self.half_open, self._trial_under_way, self.healthy = True, False, False
        self._stats.pause_ends = 0.0
        failing = list(self.failures)
        for seen in (self.failures, self._throttled, self._suspects, self.answered_lately):
            seen.clear()
        return failing

    def added(self, now: float) -> None:
        """End a pause that was based on too few calls, because a new call was added."""
        reason = self.reason
        if reason and len(self._suspects) < (REFUSAL if reason in _REFUSED else OUTAGE):
            self.paused_until = -math.inf
            self._stats.pause_ends = now

    def forget(self, call_id: int) -> None:
        if self.failures:
            self.failures.pop(call_id, None)
            self._throttled.discard(call_id)

    def polled(self, call: WatchedCall, answer: Answer, sent_at: float, now: float) -> list[int]:
        """Record the answer to a poll; see `answered`.

        May be skipped for good answers while nothing has failed.
        """
        row, outcome, evidence = call.id, answer.outcome, Evidence.RELIABLE
        was_throttled = row in self._throttled
        self._throttled.discard(row)
        if outcome in GOOD:
            self.failures.pop(row, None)
            if was_throttled:
                self.recovered(row, now)
        else:
            failures = self.failures.get(row, 0)
            self.failures[row] = failures + 1
            if outcome is Outcome.THROTTLED:
                self._throttled.add(row)
            if not failures:
                self._suspects.append(row)
            if not self._has_no_witness(outcome, now):
                known = Evidence.RELIABLE if call in self.answered_lately else Evidence.WEAK
                evidence = Evidence.SICK if failures else known
        return self.answered(answer, evidence, sent_at, now)

    def requested(self, answer: Answer, sent_at: float, now: float) -> list[int]:
        """Record the answer to a request other than a poll; see `answered`."""
        evidence = Evidence.RELIABLE
        failed, self._request_failed = self._request_failed, answer.outcome not in GOOD
        if failed and self._request_failed and not self._has_no_witness(answer.outcome, now):
            evidence = Evidence.SICK  # such requests fail repeatedly, polls do not
        return self.answered(answer, evidence, sent_at, now)

    def recovered(self, call_id: int, now: float) -> None:
        """Record a good answer to a call whose last poll was throttled.

        Several of them show that the account was throttled, not single calls: lower the rate.
        """
        self._recovered[call_id] = now
        since = now - _RECOVERED_WITHIN
        self._recovered = {row: at for row, at in self._recovered.items() if at >= since}
        if len(self._recovered) >= _RECOVERED_CALLS:
            self._slow_down(now)

    def answered(self, answer: Answer, evidence: Evidence, sent_at: float, now: float) -> list[int]:
        """Record the answer to a request, with the outcome of the verdict.

        Answers to requests that were sent before a trial are ignored. Return the rows of calls to
        poll again, because the account made them fail.
        """
        stats, was, outcome = self._stats, self.reason, answer.outcome
        changed = sent_at >= self._answers_from and self._judge(answer, evidence, sent_at, now)
        if answer.code is not None and Outcome.AUTH not in (outcome, self.reason):
            stats.authorized = True
        if outcome not in GOOD:
            if changed:
                if outcome is Outcome.AUTH:
                    stats.authorized = False
                stats.pause_ends = self.paused_until
            if changed and was is not outcome:
                _log.warning(
                    "account paused",
                    account=self._account,
                    reason=outcome.value,
                    code=answer.code,
                    message=answer.message,
                    seconds=round(self.paused_until - now, 1),
                )
            return []
        if changed and was is not None:
            stats.pause_ends = 0.0
            _log.info("account resumed", account=self._account, reason=was.value)
        if self.half_open:
            return []
        suspects, self._suspects = self._suspects, []
        # If the breaker was closed, other calls had good answers: these calls were at fault. Calls
        # that fail again after a pause are no evidence until they have a good answer.
        return suspects if changed else []

    def _judge(self, answer: Answer, evidence: Evidence, sent_at: float, now: float) -> bool:
        """Return whether an answer begins, prolongs or ends a pause."""
        self._trial_under_way = False
        was_open, outcome = self.open_since is not None, answer.outcome
        if outcome in GOOD:
            self._succeeded(now)
            return was_open
        self.healthy = False
        if sent_at < self.good_at:
            evidence = Evidence.SICK  # other calls had good answers meanwhile
        if evidence is not Evidence.SICK:
            self._run[outcome, evidence is Evidence.RELIABLE] += 1
            if outcome is Outcome.THROTTLED:
                self._retry_after = max(self._retry_after, answer.retry_after or 0.0)
        if was_open:
            self._failed_trials += 1
            self._level += evidence is Evidence.RELIABLE or self._failed_trials > _WEAK_TRIALS
        elif evidence is Evidence.SICK or not self._is_convincing(outcome, now):
            return False
        else:
            self.open_since = now
        self._open(answer, now)
        return True

    def _has_no_witness(self, outcome: Outcome, now: float) -> bool:
        """Return whether no other call can show if the account is at fault."""
        alone = outcome is Outcome.AUTH and len(self._calls) == 1
        return self.all_failed and (alone or self._is_quiet(now))

    def _is_quiet(self, now: float) -> bool:
        return now - self.good_at > _QUIET

    def _usual_run(self, now: float) -> float:
        return self._longest_run * math.pow(0.5, (now - self.good_at) / _HALF_LIFE)

    def _succeeded(self, now: float) -> None:
        weak = sum(number for (_, reliable), number in self._run.items() if not reliable)
        self._longest_run = max(float(min(weak, _LONGEST_RUN)), self._usual_run(now))
        self.good_at = now
        if any(outcome in _REFUSED for outcome, _ in self._run):
            self._contradicted_at = now
        self._close()
        self.half_open = False
        self._limiter.speed_up(now)
        self.healthy = self._limiter.share == 1 and self._longest_run < 1

    def _is_convincing(self, outcome: Outcome, now: float) -> bool:
        """Return whether enough different calls failed; go half-open one failure before that."""
        run, more = self._run, 2 * int(self._usual_run(now))
        failed = run.total()
        reliable = sum(number for (_, is_reliable), number in run.items() if is_reliable)
        refused = run[outcome, True] + run[outcome, False] if outcome in _REFUSED else 0
        # If other calls had good answers just now, two refused calls may both be at fault.
        needed = REFUSAL if self._is_quiet(now) else OUTAGE
        if (
            (refused and (refused >= needed + more or run[outcome, True] >= REFUSAL))
            or failed >= OUTAGE + more
            or reliable >= OUTAGE
        ):
            return True
        if refused == 1 or failed == OUTAGE - 1:
            self.half_open = True
            self._answers_from = now
            if refused == 1 and now - self._contradicted_at > _HALF_LIFE:
                self.paused_until = now + RECHECK * self._jitter()
        return False

    def _open(self, answer: Answer, now: float) -> None:
        back_off = _AUTH if answer.outcome is Outcome.AUTH else _DOWN
        pause = back_off.wait(self._level + 1) * self._jitter()
        if answer.outcome is Outcome.THROTTLED:
            self._slow_down(now)
            if self._retry_after:
                pause = max(self._retry_after, _DOWN.first)
                self._retry_after = 0.0
        self.paused_by = answer
        self.half_open = True
        self._answers_from = now
        self.paused_until = now + min(pause, MAX_PAUSE)

    def _slow_down(self, now: float) -> None:
        self._recovered.clear()
        self._limiter.slow_down(now)
