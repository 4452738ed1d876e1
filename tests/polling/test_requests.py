"""Requests other than polls: they share the rate and the pauses of their account."""

from __future__ import annotations

import asyncio

import pytest

from exporter.calls import GiveUpPolicy
from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from tests.polling.scene import Scene, now
from tests.waiting import deadline, until

GOOD = Answer(Outcome.OK, "100")
REFUSED = Answer(Outcome.AUTH, "101")


async def test_requests_keep_to_the_rate(scene: Scene) -> None:
    for _ in range(5):
        assert await scene.request(GOOD) is GOOD
    assert now() >= 3.5 / 20


async def test_there_is_no_turn_in_a_pause(scene: Scene) -> None:
    for _ in range(2):
        assert await scene.request(REFUSED, 60) is REFUSED
    assert scene.poller.breaker.reason is Outcome.AUTH
    assert scene.stats.authorized is False
    assert await scene.request(GOOD, 0.2) is None
    scene.poller.retry()
    assert await scene.request(GOOD) is GOOD
    assert scene.stats.authorized is True


async def test_the_first_request_is_waited_for(scene: Scene) -> None:
    """As polls do: until an answer is good, one request is under way."""
    come = asyncio.Event()

    async def request() -> Answer:
        await come.wait()
        return GOOD

    first = asyncio.create_task(scene.poller.request(request, 1.0))
    await asyncio.sleep(0.1)
    assert await scene.request(GOOD, 0.1) is None
    come.set()
    assert await first
    assert await scene.request(GOOD) is GOOD


@pytest.mark.parametrize("error", [asyncio.CancelledError, RuntimeError])
async def test_a_request_that_is_cut_off_holds_nobody_up(
    scene: Scene, error: type[BaseException]
) -> None:
    async def request() -> Answer:
        raise error

    with pytest.raises(error):
        await scene.poller.request(request, 1.0)
    assert await scene.request(GOOD) is GOOD


async def test_nothing_is_sent_once_it_is_to_end(scene: Scene) -> None:
    for _ in range(2):
        await scene.request(REFUSED, 60)
    waiting = asyncio.create_task(scene.request(GOOD, 1000))
    await scene.poller.stop(1)
    async with deadline():
        assert await waiting is None


async def test_a_request_gets_every_other_turn_of_an_account_that_is_overloaded(
    scene: Scene,
) -> None:
    never = GiveUpPolicy(1e9, 1e9)
    scene.configure(interval=0.05, max_interval=0.05, give_up=never, rate_limit=10.0)
    scene.lives = {f"call-{number}": 1e9 for number in range(100)}
    scene.watch(*scene.lives)
    await until(lambda: scene.requests() > 3)
    for _ in range(6):
        before = scene.requests()
        assert await scene.request(GOOD) is GOOD
        assert scene.requests() - before <= 2
    # Nor do they keep polls away.
    before = scene.requests()
    await asyncio.gather(*(scene.request(GOOD, 5) for _ in range(8)))
    assert scene.requests() - before >= 3
