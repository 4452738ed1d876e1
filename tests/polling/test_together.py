from __future__ import annotations

import asyncio

from exporter.polling.together import Together


async def test_what_comes_in_one_turn_is_worked_off_together() -> None:
    done: list[list[int]] = []
    together = Together[int](asyncio.get_running_loop(), done.append)
    together.add(1)
    together.add(2)
    assert not done
    await asyncio.sleep(0)
    assert done == [[1, 2]]
    await asyncio.sleep(0)
    assert done == [[1, 2]]


async def test_what_cannot_wait_takes_along_what_came_before() -> None:
    done: list[list[int]] = []
    together = Together[int](asyncio.get_running_loop(), done.append)
    together.add(1)
    together.add(2)
    together.flush()
    assert done == [[1, 2]]
    together.add(3)
    await asyncio.sleep(0)
    assert done == [[1, 2], [3]]
