from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import pytest
import pytest_asyncio

from exporter.errors import CapacityError, LedgerError
from exporter.ids import reference_id
from exporter.ledger.types import Count, NewCall
from exporter.sources.api import ApiSource
from tests.sources.sink import Sink
from tests.waiting import until


class BusySink(Sink):
    """A sink whose ledger is busy until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.free = asyncio.Event()
        self.groups: list[int] = []

    async def push(self, requests: Sequence[Sequence[NewCall]]) -> Sequence[Count | str]:
        self.groups.append(len(requests))
        await self.free.wait()
        if len(requests[0]) == 3:
            return ["main"] * len(requests)
        return await super().push(requests)


@pytest_asyncio.fixture
async def sink() -> BusySink:
    return BusySink()


@pytest_asyncio.fixture
async def source(sink: BusySink) -> AsyncIterator[ApiSource]:
    source = ApiSource(sink, limit=5)
    running = asyncio.create_task(source.run())
    yield source
    await stop(running)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def calls(*names: str) -> list[NewCall]:
    return [NewCall("main", reference_id(name), {}) for name in names]


async def test_requests_that_arrive_while_the_ledger_is_busy_share_a_commit(
    sink: BusySink, source: ApiSource
) -> None:
    first = asyncio.create_task(source.push(calls("a")))
    await until(lambda: sink.groups == [1])
    others = [asyncio.create_task(source.push(calls(name))) for name in "bcdef"]
    await asyncio.sleep(0)
    gone = others.pop()
    gone.cancel()
    sink.free.set()
    assert await asyncio.gather(first, *others) == [Count(1, 0)] * 5
    assert sink.groups == [1, 5]


async def test_a_request_beyond_the_bound_is_refused(sink: BusySink, source: ApiSource) -> None:
    large = asyncio.create_task(source.push(calls(*"abcdefgh")))  # alone, it may be of any size
    await until(lambda: sink.groups == [1])
    waiting = [asyncio.create_task(source.push(calls("a", "b"))) for _ in range(6)]
    await until(lambda: sum(request.done() for request in waiting) == 4)
    sink.free.set()
    assert await large == Count(8, 0)
    done = await asyncio.gather(*waiting, return_exceptions=True)
    refused = [error for error in done if isinstance(error, CapacityError)]
    assert [(str(error), error.retry_after) for error in refused] == [
        ("the ledger cannot keep up", 1)
    ] * 4


async def test_every_outcome_is_counted_and_each_request_has_its_own(
    sink: BusySink, source: ApiSource
) -> None:
    (status,) = source.statuses
    sink.free.set()
    with pytest.raises(CapacityError, match=r"account main: .* is reached"):
        await source.push(calls("a", "b", "c"))
    sink.broken = True
    failed = await asyncio.gather(*(source.push(calls("a")) for _ in "ab"), return_exceptions=True)
    assert [str(error) for error in failed] == ["the disk is full"] * 2
    assert failed[0] is not failed[1]
    source.refused()
    assert (status.errors, status.last_success) == (4, 0.0)
    sink.broken = False
    await source.push(calls("a"))
    assert status.last_success > 0


async def test_what_waits_at_the_end_is_refused(sink: BusySink) -> None:
    source = ApiSource(sink)
    running = asyncio.create_task(source.run())
    requests = [asyncio.create_task(source.push(calls("a")))]
    await until(lambda: sink.groups == [1])
    requests.append(asyncio.create_task(source.push(calls("b"))))
    await asyncio.sleep(0)
    await stop(running)
    for request in (*requests, source.push(calls("a"))):
        with pytest.raises(LedgerError, match="the exporter is stopping"):
            await request
