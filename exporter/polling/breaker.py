"""Whether an account is polled at all, and how fast. Pure: time comes in as an argument.

A failed request can be the fault of its call, which the provider never answers properly, or of the
account: refused credentials, throttling, an outage. Only different calls that fail one after the
other tell the two apart. Times are seconds of the monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

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

# Trials that fail before the pause grows, while they are for calls that were never answered: with
# nine sick calls in ten, so many different ones in a row have a chance of 1 in 500.
_WEAK_TRIALS: Final = 60

# A longer run of failures was an outage.
_LONGEST_RUN: Final = 30

# The longest run of failures that ended with a good answer is forgotten by this share with each
# further good answer.
_FORGETTING: Final = 0.1

# A throttled account's rate is halved, down to this share, and grows back in ten minutes.
_LEAST_SHARE: Final = 0.05
_REGROWTH: Final = 1 / 600


@dataclass(frozen=True, slots=True)
class BackOffRange:
    """A pause that doubles, in seconds."""

    first: float
    longest: float

    def pause(self, level: int) -> float:
        """Return the length of the pause after `level` earlier ones in a row."""
        return min(self.longest, self.first * 2.0 ** min(level, 64))


_AUTH: Final = BackOffRange(30.0, 900.0)
_DOWN: Final = BackOffRange(5.0, 120.0)

GOOD: Final = frozenset({Outcome.OK, Outcome.NOT_FOUND})
"""Outcomes that show that the account can be polled."""

REFUSED: Final = frozenset({Outcome.AUTH, Outcome.THROTTLED})
"""Outcomes with which the provider refuses an account."""


class Witness(Enum):
    """What a failed request for a call says about the account.

    Attributes:
        SICK: nothing: the call had failed before, while others were answered.
        NEW: little: the call was never answered, and may be sick itself.
        RELIABLE: much: the call was answered before, or no other call is left to ask for.
    """

    SICK = 0
    NEW = 1
    RELIABLE = 2


class Change(Enum):
    """What an answer changes about an account."""

    OPENED = 0
    CLOSED = 1


class CircuitBreaker:
    """Decides whether an account is polled: closed, open (paused), or half-open (on trial).

    It starts half-open: a single request is sent, and another one only when that is answered, until
    an answer is good. It opens when `REFUSAL` different calls in a row were refused, or `OUTAGE`
    failed in any way; the last of them is a trial, and so is the request after each pause. An
    account whose calls often fail needs longer runs of failures: by twice the longest that lately
    ended with a good answer.

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
        self._lowered_at = -math.inf
        self._half_open = True
        self._trial_under_way = False
        self._failed = 0  # different calls in a row
        self._refused = dict.fromkeys(REFUSED, 0)  # of those, by outcome
        self._retry_after = 0.0  # the longest that any of those asked for
        self._usual = 0.0  # the longest run of failures that lately ended with a good answer
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
        return self._failed >= (1 if self._half_open else REFUSAL)

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
        if witness is not Witness.SICK:
            self._failed += 1
            if outcome in REFUSED:
                self._refused[outcome] += 1
                self._retry_after = max(self._retry_after, retry_after or 0.0)
        if self.open_since is not None:
            self._trials += 1
            self._level += witness is Witness.RELIABLE or self._trials > _WEAK_TRIALS
            return self._open(outcome, now)
        if witness is not Witness.SICK:
            return self._suspect(outcome, now)
        return None

    def throttled_at(self, failed_at: float, now: float) -> None:
        """Lower the rate: a call that was throttled at `failed_at` has a good answer now.

        So the account was throttled, and not the call alone.
        """
        if failed_at > self._lowered_at:
            self._lower_rate(now)

    def _succeeded(self, now: float) -> Change | None:
        run = float(min(self._failed, _LONGEST_RUN))
        self._usual = max(run, self._usual * (1 - _FORGETTING))
        was_open = self.open_since is not None
        self._close()
        self._half_open = False
        self._raise_rate(now)
        self.healthy = self._share == 1 and self._usual < 1
        return Change.CLOSED if was_open else None

    def _suspect(self, outcome: Outcome, now: float) -> Change | None:
        """Open where enough different calls have failed; go on trial where one is missing."""
        more = 2 * int(self._usual)
        refused = self._refused.get(outcome, 0) - REFUSAL - more
        failed = self._failed - OUTAGE - more
        if refused >= 0 or failed >= 0:
            self.open_since = now
            return self._open(outcome, now)
        if refused == -1 or failed == -1:
            self._half_open = True
            self._stopped_at = now
            self.paused_until = now + (RECHECK * self._jitter() if refused == -1 else 0.0)
        return None

    def _open(self, outcome: Outcome, now: float) -> Change:
        pause = (_AUTH if outcome is Outcome.AUTH else _DOWN).pause(self._level) * self._jitter()
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
        self._failed = self._level = self._trials = 0
        self._refused = dict.fromkeys(REFUSED, 0)
        self._retry_after = 0.0
        self.open_since = self.reason = None
        self.paused_until = -math.inf

    def _lower_rate(self, now: float) -> None:
        self._share = max(_LEAST_SHARE, self._share / 2)
        self._share_since = self._lowered_at = now
        self._limit.set(self._rate_limit * self._share)

    def _raise_rate(self, now: float) -> None:
        if self._share < 1:
            self._share = min(1.0, self._share + (now - self._share_since) * _REGROWTH)
            self._share_since = now
            self._limit.set(self._rate_limit * self._share)
