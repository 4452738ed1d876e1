"""Cases that are run at the same time, and judged one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping

Outcomes = Mapping[str, BaseException | None]


async def run_together(cases: Mapping[str, Awaitable[None]], at_once: int = 100) -> Outcomes:
    """Run cases, none of which ends another; returns what each raised."""
    room = asyncio.Semaphore(at_once)

    async def run(case: Awaitable[None]) -> None:
        async with room:
            await case

    raised = await asyncio.gather(*map(run, cases.values()), return_exceptions=True)
    return dict(zip(cases, raised, strict=True))


def judge(outcomes: Outcomes, case: str) -> None:
    """Raise what a case raised."""
    if error := outcomes[case]:
        raise error
