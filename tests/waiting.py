"""Waiting for what a test expects.

A wait that succeeds costs nothing, so that a deadline is only there to end a test that fails. What
must not be waited for is made to last for ever in a test: it fails when the deadline is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

DEADLINE: Final = 120.0
"""Seconds: more than a machine that is busy with other things can need for any step of a test."""


def deadline() -> asyncio.Timeout:
    """Bound a wait in a test, as a context."""
    return asyncio.timeout(DEADLINE)


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; fail when it does not in time."""
    pause = 0.005
    async with deadline():
        while not condition():
            await asyncio.sleep(pause)
            pause = min(0.1, 1.05 * pause)
