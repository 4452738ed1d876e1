"""An event loop whose time passes only when nothing is left to do: days in seconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from exporter.calls import GiveUpPolicy
from exporter.config import AccountConfig, PollingConfig
from exporter.secrets import Secret

R = TypeVar("R")

EPOCH: Final = 1_764_000_000.0
"""Unix time at which virtual time begins."""


@dataclass(frozen=True, slots=True)
class PollingSettings:
    """How an account is polled, also beyond the bounds of a configuration."""

    interval: float
    max_interval: float
    give_up: GiveUpPolicy
    rate_limit: float
    max_concurrency: int
    adaptive: bool = False

    @property
    def sections(self) -> tuple[AccountConfig, PollingConfig]:
        """The sections of a configuration that say so."""
        config = AccountConfig(
            name="main",
            api_key=Secret("key"),
            secret_key=Secret("secret"),
            rate_limit=self.rate_limit,
            max_concurrency=self.max_concurrency,
        )
        polling = PollingConfig.model_construct(
            pace="adaptive" if self.adaptive else "growing",
            interval=self.interval,
            max_interval=self.max_interval,
            not_found_grace=self.give_up.not_found_grace,
            give_up_after=self.give_up.give_up_after,
        )
        return config, polling


class _Selector(selectors.SelectSelector):
    """Waits for no file: it has the time pass that the loop would sleep."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits for something that never comes")
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop with a clock of its own."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Return the virtual seconds since the loop was made."""
        return self._virtual.now


def wall() -> float:
    """Return the virtual Unix time."""
    return EPOCH + asyncio.get_running_loop().time()


def run(main: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine in virtual time; return what it returns."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
