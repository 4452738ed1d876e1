from __future__ import annotations

import asyncio

import pytest

from exporter.supervisor import Supervisor
from tests.waiting import deadline


async def fail() -> None:
    raise ZeroDivisionError


async def end() -> None:
    pass


async def test_waiting_ends_with_the_event() -> None:
    supervisor, event = Supervisor(), asyncio.Event()
    await supervisor.start(end())
    event.set()
    async with deadline():
        await supervisor.wait_for(event)
    assert supervisor.failure is None


@pytest.mark.parametrize("how", ["start", "watch", "fail"])
async def test_waiting_ends_with_the_first_failure(how: str) -> None:
    supervisor = Supervisor()
    if how == "start":
        supervisor.start(fail())
    elif how == "watch":
        supervisor.watch(asyncio.create_task(fail()))
    else:
        supervisor.fail(ZeroDivisionError())
        supervisor.fail(ValueError())
    async with deadline():
        with pytest.raises(ZeroDivisionError):
            await supervisor.wait_for(asyncio.Event())


async def test_stopping_ends_what_it_began_and_is_no_failure() -> None:
    supervisor = Supervisor()
    own = supervisor.start(asyncio.sleep(1e9))
    other = asyncio.create_task(asyncio.sleep(1e9))
    supervisor.watch(other)
    await supervisor.stop()
    assert own.cancelled()
    assert not other.done()
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)
    assert supervisor.failure is None
