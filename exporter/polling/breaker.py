"""Whether an account is polled at all, and how fast. Pure: time comes in as an argument.

A failed request can be the fault of its call, which the provider never answers properly, or of the
account: refused credentials, throttling, an outage. Only different calls that fail one after the
other tell the two apart. Times are seconds of the monotonic clock.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from enum import Enum
from typing import Final

from exporter.backoff import ExponentialBackoff
from exporter.esms.codes import Outcome
from exporter.polling.limiter import Limit, RateLimiter

MAX_PAUSE: Final = 900.0
"""Seconds that any pause lasts at most, whatever a `Retry-After` says."""

OUTAGE: Final = 5
"""Different calls that fail in a row, with no good answer in between, before the breaker opens."""

REFUSAL: Final = 2
"""The same where the provider refuses the credentials or throttles: one call is no witness."""

RECHECK: Final = 3.0
"""Seconds from the first refusal to the request for another call that confirms it or not."""

# Trials that fail before the pause grows, while they are for calls that may be sick themselves:
# with nine sick calls in ten, so many different ones in a row have a chance of 1 in 500.
_WEAK_TRIALS: Final = 60

# A longer run of failures was an outage.
_LONGEST_RUN: Final = 30

# Seconds in which half of the longest run of failures that ended with a good answer is forgotten.
_HALF_LIFE: Final = 300.0

# Seconds without a good answer after which calls that failed before are evidence, where there are
# no others.
_QUIET: Final = 60.0

# Throttled calls that were answered later, within so many seconds, which show that the account was
# throttled.
_THROTTLED_CALLS: Final = 5
_THROTTLED_WITHIN: Final = 60.0

# A throttled account's rate is halved, down to this share, and grows back in ten minutes.
_LEAST_SHARE: Final = 0.05
_REGROWTH: Final = 1 / 600


_AUTH: Final = ExponentialBackoff(30.0, 900.0)
_DOWN: Final = ExponentialBackoff(5.0, 120.0)

GOOD: Final = frozenset({Outcome.OK, Outcome.NOT_FOUND})
"""Outcomes that show that the account can be polled."""

REFUSED: Final = frozenset({Outcome.AUTH, Outcome.THROTTLED})
"""Outcomes with which the provider refuses an account."""


class Witness(Enum):
    """What a failed request for a call says about the account.

    Attributes:
        SICK: nothing: the call had failed before, while others were answered.
        WEAK: little: the call may be sick itself.
        RELIABLE: much: the call was answered lately, or no other call is left to ask for.
    """

    SICK = 0
    WEAK = 1
    RELIABLE = 2


class Change(Enum):
    """What an answer changes about an account."""

    OPENED = 0
    CLOSED = 1


class _Run:
    """Different calls that failed in a row, with no good answer in between."""

    def __init__(self) -> None:
        self.failed = 0
        self.reliable = 0
        self._refused: Counter[tuple[Outcome, bool]] = Counter()

    @property
    def weak(self) -> int:
        """How many of them may be sick themselves."""
        return self.failed - self.reliable

    def add(self, outcome: Outcome, *, reliable: bool) -> None:
        """Add a call."""
        self.failed += 1
        self.reliable += reliable
        if outcome in REFUSED:
            self._refused[outcome, reliable] += 1

    def refused(self, outcome: Outcome | None = None, *, reliable: bool | None = None) -> int:
        """Return how many were refused, with this outcome and by calls of this kind."""
        return sum(
            number
            for (each, kind), number in self._refused.items()
            if outcome in (None, each) and reliable in (None, kind)
        )


class CircuitBreaker:
    """Decides whether an account is polled: closed, open (paused), or half-open (on trial).

    It starts half-open: a single request is sent, and another one only when that is answered, until
    an answer is good. It opens when `REFUSAL` different calls in a row were refused, or `OUTAGE`
    failed in any way; the last of them is a trial, and so is the request after each pause. Where
    runs of failures have lately ended with a good answer, calls that may be sick themselves open it
    only in a longer run, by twice the longest of those.

    Args:
        rate_limit: requests per second.
        jitter: returns a factor around 1, so that the pauses of several accounts end apart.
        limit: makes the rate limiter, from a rate.

    Attributes:
        healthy: whether the account is closed, and a good answer changes nothing.
        open_since: when the first of the pauses in a row began; None while there is none.
        paused_until: when the pause ends, or ended.
        reason: why the breaker is open; None while it is not.
    """

    def __init__(
        self,
        rate_limit: float,
        jitter: Callable[[], float],
        limit: Callable[[float], Limit] = RateLimiter,
    ) -> None:
        self._rate_limit = rate_limit
        self._limit = limit(rate_limit)
        self._jitter = jitter
        self._share = 1.0
        self._share_since = 0.0
        self._half_open = True
        self._trial_under_way = False
        self._run = _Run()
        self._retry_after = 0.0  # the longest that any of those asked for
        self._usual = 0.0  # the longest run of failures that lately ended with a good answer
        self._good_at = -math.inf  # when the last good answer came
        self._contradicted_at = -math.inf  # when another call showed that a refused one was sick
        self._recovered: dict[int, float] = {}  # when throttled calls were answered after all
        self._level = 0
        self._trials = 0  # that failed since it is open
        self._stopped_at = -math.inf
        self.open_since: float | None = None
        self.paused_until = -math.inf
        self.reason: Outcome | None = None
        self.healthy = False

    def set_rate_limit(self, rate_limit: float) -> None:
        """Change the configured rate, in requests per second."""
        self._rate_limit = rate_limit
        self._limit.set(rate_limit * self._share)

    def reset(self, now: float) -> None:
        """Go on trial at once, because the credentials or the address have changed."""
        self._close()
        self._stopped_at = now  # answers to earlier requests say nothing about the new credentials
        self._half_open, self._trial_under_way = True, False
        self.healthy = False

    def end_pause(self) -> None:
        """Go on trial at once, where there is a pause."""
        self.paused_until = -math.inf

    def wait(self, now: float) -> float:
        """Return the seconds until a request may be sent; 0 or less for now.

        Infinite while the answer to a trial is awaited.
        """
        if self._trial_under_way:
            return math.inf
        if now < self.paused_until:
            return self.paused_until - now
        return self._limit.wait(now)

    @property
    def half_open(self) -> bool:
        """Whether one request at a time is sent, until an answer is good."""
        return self._half_open

    @property
    def doubtful(self) -> bool:
        """Whether failures in a row make it matter which call is polled next."""
        return self._run.failed >= (1 if self._half_open else REFUSAL)

    def sent(self, now: float) -> None:
        """Account for a request that is sent now."""
        self._limit.take(now)
        self._trial_under_way = self._half_open

    def answered(
        self,
        outcome: Outcome,
        retry_after: float | None,
        sent_at: float,
        now: float,
        witness: Witness = Witness.RELIABLE,
    ) -> Change | None:
        """Account for the outcome of a request.

        Args:
            outcome: of the request.
            retry_after: the seconds that a throttling provider asked for.
            sent_at: when the request was sent; one from before a trial decides nothing.
            now: when the answer came.
            witness: what a failure of this call says about the account.

        Returns:
            `OPENED` when a pause begins, also when it is not the first one in a row; `CLOSED` when
            the pauses are over.
        """
        if sent_at < self._stopped_at:
            return None
        self._trial_under_way = False
        if outcome in GOOD:
            return self._succeeded(now)
        self.healthy = False
        if sent_at < self._good_at:
            witness = Witness.SICK  # others were answered meanwhile, as where a call hangs
        if witness is not Witness.SICK:
            self._run.add(outcome, reliable=witness is Witness.RELIABLE)
            if outcome is Outcome.THROTTLED:
                self._retry_after = max(self._retry_after, retry_after or 0.0)
        if self.open_since is not None:
            self._trials += 1
            self._level += witness is Witness.RELIABLE or self._trials > _WEAK_TRIALS
            return self._open(outcome, now)
        if witness is not Witness.SICK:
            return self._suspect(outcome, now)
        return None

    def good(self, now: float) -> None:
        """Account for a good answer of a healthy account, which changes nothing."""
        self._good_at = now

    def is_quiet(self, now: float) -> bool:
        """Return whether no answer has been good for `_QUIET` seconds."""
        return now - self._good_at > _QUIET

    def recovered(self, call_id: int, now: float) -> None:
        """Account for a good answer to a call that was throttled the last time.

        If several calls have one, the account was throttled, and not the calls: lower the rate.
        """
        self._recovered[call_id] = now
        since = now - _THROTTLED_WITHIN
        self._recovered = {row: at for row, at in self._recovered.items() if at >= since}
        if len(self._recovered) >= _THROTTLED_CALLS:
            self._lower_rate(now)

    def _usually(self, now: float) -> float:
        return self._usual * math.pow(0.5, (now - self._good_at) / _HALF_LIFE)

    def _succeeded(self, now: float) -> Change | None:
        run = float(min(self._run.weak, _LONGEST_RUN))  # a longer one was an outage
        self._usual = max(run, self._usually(now))
        self._good_at = now
        if self._run.refused():
            self._contradicted_at = now
        was_open = self.open_since is not None
        self._close()
        self._half_open = False
        self._raise_rate(now)
        self.healthy = self._share == 1 and self._usual < 1
        return Change.CLOSED if was_open else None

    def _suspect(self, outcome: Outcome, now: float) -> Change | None:
        """Open where enough different calls have failed; go on trial where one is missing."""
        run, more = self._run, 2 * int(self._usually(now))
        refused, reliable = run.refused(outcome), run.refused(outcome, reliable=True)
        # Where others were just answered, two refused calls may well be sick both.
        needed = REFUSAL if self.is_quiet(now) else OUTAGE
        opens = refused >= needed + more or reliable >= REFUSAL
        if opens or run.failed >= OUTAGE + more or run.reliable >= OUTAGE:
            self.open_since = now
            return self._open(outcome, now)
        if refused == 1 or run.failed == OUTAGE - 1:
            self._half_open = True
            self._stopped_at = now
            if refused == 1 and now - self._contradicted_at > _HALF_LIFE:
                self.paused_until = now + RECHECK * self._jitter()
        return None

    def _open(self, outcome: Outcome, now: float) -> Change:
        back_off = _AUTH if outcome is Outcome.AUTH else _DOWN
        pause = back_off.wait(self._level + 1) * self._jitter()
        if outcome is Outcome.THROTTLED:
            self._lower_rate(now)
            if self._retry_after:
                pause = max(self._retry_after, _DOWN.first)
                self._retry_after = 0.0
        self.reason = outcome
        self._half_open = True
        self._stopped_at = now
        self.paused_until = now + min(pause, MAX_PAUSE)
        return Change.OPENED

    def _close(self) -> None:
        self._run = _Run()
        self._level = self._trials = 0
        self._retry_after = 0.0
        self.open_since = self.reason = None
        self.paused_until = -math.inf

    def _lower_rate(self, now: float) -> None:
        self._share = max(_LEAST_SHARE, self._share / 2)
        self._share_since = now
        self._recovered.clear()
        self._limit.set(self._rate_limit * self._share)

    def _raise_rate(self, now: float) -> None:
        if self._share < 1:
            self._share = min(1.0, self._share + (now - self._share_since) * _REGROWTH)
            self._share_since = now
            self._limit.set(self._rate_limit * self._share)
