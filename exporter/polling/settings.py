"""How an account is polled."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.calls import Patience


@dataclass(frozen=True, slots=True)
class PollingSettings:
    """How one account is polled; times in seconds, the rate in requests per second.

    Attributes:
        interval: from one poll to the next while a call is young; where the pace is adaptive, what
            95 % of the results are to be known within.
        max_interval: the longest wait between two polls of a call.
        patience: how long calls are asked for.
        rate_limit: how many requests may be sent.
        max_concurrency: how many may be under way.
        adaptive: whether the pace follows what is learnt of the account's calls.
    """

    interval: float
    max_interval: float
    patience: Patience
    rate_limit: float
    max_concurrency: int
    adaptive: bool = False
