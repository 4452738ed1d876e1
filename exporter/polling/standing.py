"""How an account stands with the provider: whether it may be asked, and what was last said."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import structlog

from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.metrics.accounts import AccountMetrics
from exporter.polling.pace import GOOD, Limit, Pace

_log = structlog.get_logger(__name__)


class Standing:
    """Learns from every answer; shows and logs when the account is paused, and when it goes on.

    Args:
        account: its name.
        rate_limit: requests per second.
        limit: makes what keeps to that.
        metrics: the account's series.

    Attributes:
        pace: whether the account may be asked now.
        authorized: whether the credentials are good; None before an answer could tell.
        paused_by: the answer that the last pause began with.
    """

    def __init__(
        self,
        account: str,
        rate_limit: float,
        limit: Callable[[float], Limit],
        metrics: AccountMetrics,
    ) -> None:
        self._account = account
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self.pace = Pace(rate_limit, _jitter, limit)
        self.authorized: bool | None = None
        self.paused_by: Answer | None = None

    @property
    def paused(self) -> Outcome | None:
        """Why the account is not polled now, if it is not."""
        return self.pace.reason

    @property
    def paused_until(self) -> float | None:
        """When the pause ends (Unix time), if there is one."""
        if self.pace.reason is None:
            return None
        return time.time() + max(0.0, self.pace.paused_until - self._loop.time())

    def retry(self) -> None:
        """End a pause, because the credentials or the address have changed."""
        self.pace.retry(self._loop.time())
        self._metrics.paused_until.value = 0.0

    def answered(
        self, answer: Answer, outcome: Outcome, sent_at: float, now: float, wall: float
    ) -> None:
        """Account for an answer.

        Args:
            answer: what was said.
            outcome: what the request came to.
            sent_at: when it was sent, by the loop's clock.
            now: that clock.
            wall: Unix time.
        """
        if answer.code is not None:
            self.authorized = outcome in GOOD or outcome is not Outcome.AUTH
        self._metrics.answered(outcome, answer.code, now - sent_at, wall)
        if not (self.pace.well and outcome in GOOD):
            self._adapt(answer, outcome, sent_at, now, wall)

    def heard(self, answer: Answer, sent_at: float, now: float, wall: float) -> None:
        """Account for an answer to another request than a poll, which is counted elsewhere."""
        if answer.code is not None:
            self.authorized = answer.outcome is not Outcome.AUTH
        self._adapt(answer, answer.outcome, sent_at, now, wall)

    def _adapt(
        self, answer: Answer, outcome: Outcome, sent_at: float, now: float, wall: float
    ) -> None:
        pace = self.pace
        was, trial = pace.reason, pace.on_trial
        if pace.answered(outcome, answer.retry_after, sent_at, now):
            self.paused_by = answer
            self._metrics.paused_until.value = wall + pace.paused_until - now
            if was is not pace.reason:
                _log.warning(
                    "account paused",
                    account=self._account,
                    reason=outcome.value,
                    code=answer.code,
                    message=answer.message,
                    seconds=round(pace.paused_until - now, 1),
                )
        elif trial and not pace.on_trial and was is not None:
            self._metrics.paused_until.value = 0.0
            _log.info("account resumed", account=self._account, reason=was.value)


def _jitter() -> float:
    return 0.9 + 0.2 * random.random()  # noqa: S311 - no secret hangs on it
