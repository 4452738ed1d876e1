from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from benchmarks import virtual_time
from benchmarks.virtual_time import PollingSettings
from exporter.calls import CallState, GiveUpPolicy, WatchedCall
from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.ids import Kind, reference_id
from exporter.polling.poller import Poller, Send
from exporter.polling.stats import AccountStats
from tests.waiting import deadline, until

GOOD = Answer(Outcome.OK, "100")


def fail(error: BaseException) -> None:
    raise error


def poller_of(send: Send, settings: PollingSettings) -> Poller:
    wall = virtual_time.wall
    return Poller(*settings.sections, send, AccountStats(), lambda *_: None, fail, wall, wall)


async def never(*_: str) -> Answer:
    raise AssertionError("nothing is polled")


@pytest_asyncio.fixture
async def poller() -> AsyncIterator[Poller]:
    settings = PollingSettings(0.05, 0.2, GiveUpPolicy(60, 600), 20, 4)
    poller = poller_of(never, settings)
    yield poller
    await poller.stop(1)


async def asked(poller: Poller, answer: Answer = GOOD, within: float = 1.0) -> Answer | None:
    async def request() -> Answer:
        return answer

    done = await poller.request("place", request, within)
    return done[0] if done else None


async def test_requests_keep_to_the_rate(poller: Poller) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(5):
        assert await asked(poller) is GOOD
    assert loop.time() - began >= 3.5 / 20


async def test_there_is_no_turn_in_a_pause(poller: Poller) -> None:
    refused = Answer(Outcome.AUTH, "101")
    for _ in range(2):
        assert await asked(poller, refused, within=60) is refused
    assert poller.paused is Outcome.AUTH
    assert poller.stats.authorized is False
    assert await asked(poller, within=0.2) is None
    poller.retry()
    assert await asked(poller) is GOOD
    assert poller.stats.authorized is True


async def test_the_first_request_is_waited_for(poller: Poller) -> None:
    """As polls do: until an answer is good, one request is under way."""
    come = asyncio.Event()

    async def request() -> Answer:
        await come.wait()
        return GOOD

    first = asyncio.create_task(poller.request("place", request, 1.0))
    await asyncio.sleep(0.1)
    assert await asked(poller, within=0.1) is None
    come.set()
    assert await first
    assert await asked(poller) is GOOD


@pytest.mark.parametrize("error", [asyncio.CancelledError, RuntimeError])
async def test_a_request_that_is_cut_off_holds_nobody_up(
    poller: Poller, error: type[BaseException]
) -> None:
    async def request() -> Answer:
        raise error

    with pytest.raises(error):
        await poller.request("place", request, 1.0)
    assert await asked(poller) is GOOD


async def test_nothing_is_sent_once_it_is_to_end(poller: Poller) -> None:
    refused = Answer(Outcome.AUTH, "101")
    for _ in range(2):
        await asked(poller, refused, within=60)
    waiting = asyncio.create_task(asked(poller, within=1000))
    await poller.stop(1)
    async with deadline():
        assert await waiting is None


async def test_a_request_gets_every_other_turn_of_an_account_that_is_overloaded() -> None:
    polled: list[str] = []

    async def send(name: str, _: Kind) -> Answer:
        polled.append(name)
        return Answer(Outcome.OK, "100", reference_id=name, send_status=1)

    settings = PollingSettings(0.05, 0.05, GiveUpPolicy(1e9, 1e9), 10, 4)
    poller = poller_of(send, settings)
    now = virtual_time.wall()
    for row in range(100):
        name = reference_id(f"call-{row}")
        poller.add(WatchedCall(row, name, now, CallState.NEW, now), max_wait=0.05)
    poller.wake()
    await until(lambda: len(polled) > 3)
    for _ in range(6):
        before = len(polled)
        assert await asked(poller) is GOOD
        assert len(polled) - before <= 2
    # Nor do they keep polls away.
    before = len(polled)
    await asyncio.gather(*(asked(poller, within=5) for _ in range(8)))
    assert len(polled) - before >= 3
    await poller.stop(1)
