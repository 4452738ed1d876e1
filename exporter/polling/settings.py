"""How an account is polled."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.calls import Patience


@dataclass(frozen=True, slots=True)
class PollingSettings:
    """How one account is polled; times in seconds, the rate in requests per second."""

    interval: float
    max_interval: float
    patience: Patience
    rate_limit: float
    max_concurrency: int
