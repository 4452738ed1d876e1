"""When the calls of one account are asked for: at the pace that is configured, with its jitter."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

from exporter.calls import CallState, Finished, Status, WatchedCall
from exporter.polling.adaptive import AdaptivePace
from exporter.polling.settings import PollingSettings


class Timing:
    """Says when to ask for a call, and learns from those that end.

    Args:
        settings: the pace; may be replaced with `configure`.

    Attributes:
        pace: what it goes by.
        hinted: calls that are polled because of a hint that they have ended.
    """

    def __init__(self, settings: PollingSettings) -> None:
        self._settings = settings
        # One that learns nothing is the growing pace.
        self.pace = AdaptivePace(settings.interval, settings.max_interval)
        self.hinted: set[int] = set()
        self._watched_at = -math.inf

    def configure(self, settings: PollingSettings) -> None:
        """Change the pace; what was learnt stays, unless it is not adaptive any more."""
        self._settings = settings
        if settings.adaptive:
            self.pace.configure(settings.interval, settings.max_interval)
        else:
            self.pace = AdaptivePace(settings.interval, settings.max_interval)

    def first(self, call: WatchedCall, now: float, wall: float) -> float:
        """Return after how many seconds to ask for a call that is watched from now on.

        A new one is asked for at once, or when it may have ended, where that is known of others;
        one that was asked for already, some time within its wait.

        Args:
            call: the call.
            now: seconds of the monotonic clock.
            wall: Unix time.
        """
        if call.state is not CallState.NEW:
            return self.again(call, wall) * random.random()  # noqa: S311 - no secret hangs on it
        watched_at, self._watched_at = self._watched_at, now
        # The first after a silence shows at once whether the account can be asked.
        if now - watched_at >= self._settings.max_interval:
            return 0.0
        age = max(0.0, wall - call.first_watched)
        return self.pace.first_wait(age, random.random())  # noqa: S311 - no secret hangs on it

    def again(self, call: WatchedCall, wall: float, failures: int = 0) -> float:
        """Return after how many seconds to poll a call again.

        Args:
            call: the call.
            wall: Unix time.
            failures: polls in a row that failed.
        """
        age = max(0.0, wall - call.first_watched)
        return self.pace.wait(age, failures, random.random())  # noqa: S311 - as above

    def learn(
        self,
        call: WatchedCall,
        found: Finished,
        before: float,
        at: float,
        *,
        told: bool = False,
        failed: bool = False,
    ) -> None:
        """Learn from a call that has ended.

        Args:
            call: the call.
            found: how it ended.
            before: when a poll was answered for the last time before that one which found out
                (Unix time); 0 for never.
            at: when its end was known (Unix time).
            told: whether a callback said so; calls that are polled because of a hint are known.
            failed: whether the poll before failed: it did not see whether the call had ended.
        """
        seen = max(call.state_since, 0.0 if failed else before)
        told = told or call.id in self.hinted
        age = at - call.first_watched
        # A call that the provider does not know says nothing of how long others live.
        if not self._settings.adaptive or found.status is Status.NOT_FOUND:
            return
        if found.status is Status.EXPIRED:
            self.pace.outlived(age, at)
        else:
            self.pace.ended(seen - call.first_watched, age, at, told=told)

    def recall(self, ends: Iterable[tuple[Status, float]]) -> None:
        """Learn from calls of the past, oldest first: how they ended, and at which age."""
        if self._settings.adaptive:
            self.pace.recall(
                (age, status is not Status.EXPIRED)
                for status, age in ends
                if status is not Status.NOT_FOUND
            )
