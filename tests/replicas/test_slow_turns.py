"""Turns that are reserved where the ledger is slow."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from exporter.ledger.sharing import Grant, Wish
from exporter.polling.turns import Lease
from exporter.replicas.reserving import Reserving
from tests.waiting import until

SLOW = 0.8
"""Seconds from when the server looks at its clock until its answer has come."""


async def test_turns_are_taken_though_every_answer_is_slow() -> None:
    loop, leads = asyncio.get_running_loop(), list[float]()

    async def reserve(wishes: Sequence[Wish], lead: float) -> Sequence[Grant]:
        leads.append(lead)
        now = loop.time() + 1000
        await asyncio.sleep(0.01 if len(leads) == 2 else SLOW)
        return [Grant(wish.account, now + lead, now) for wish in wishes]

    lease = Lease()
    lease.until = loop.time() + 60
    reserving = Reserving(reserve, {}, lease)
    turns = reserving.turns("main", 20)
    task = asyncio.create_task(reserving.run())
    try:
        await until(lambda: turns.wait(loop.time()) <= 0 and len(leads) > 3)
    finally:
        task.cancel()
    # One that is slow by itself keeps nobody waiting.
    assert max(leads[:3]) < 0.1
