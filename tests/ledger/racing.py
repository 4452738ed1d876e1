"""Exporters that do things at the same time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

from tests.waiting import DEADLINE

R = TypeVar("R")


def together(*functions: Callable[[], R]) -> list[R]:
    """Run functions in threads that start at the same moment; returns what they return."""
    start = Barrier(len(functions))

    def run(function: Callable[[], R]) -> R:
        start.wait(DEADLINE)
        return function()

    with ThreadPoolExecutor(len(functions)) as threads:
        return [done.result(DEADLINE) for done in [threads.submit(run, one) for one in functions]]


def shuffled(items: Sequence[R], seed: int) -> list[R]:
    """Return the items in another order, the same for the same seed."""
    return random.Random(seed).sample(items, len(items))
