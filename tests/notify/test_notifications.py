"""From a call's end to whoever is to be told: the whole service, and a real receiver."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from exporter.calls import CallbackOutcome
from exporter.config import PollingConfig
from exporter.esms.answers import read_callback
from exporter.ids import reference_id
from exporter.ledger.types import NewCall
from exporter.simulator import Plan
from tests.notify.bench import Bench, target
from tests.notify.receiver import Receiver
from tests.samples import samples
from tests.waiting import deadline, until

BUSY = Plan(duration=0, call_status="BUSY", sent_result=0)


async def test_however_a_call_ends_it_is_told(bench: Bench, receiver: Receiver) -> None:
    """By a poll, by a callback, and by no answer at all."""
    await bench.finish("polled")
    calls = bench.service.calls
    bench.simulator.add_call("main", "called-back", Plan(queued=1e9))
    await calls.add(None, [NewCall("main", reference_id("called-back"), {})])
    record = await calls.find("main", reference_id("called-back"))
    assert record is not None
    told_by = {"SMSID": "called-back", "SendStatus": "5", "SendSuccess": "1", "CallStatus": "BUSY"}
    answer = read_callback(told_by)
    assert await calls.apply_callback(record, answer) is CallbackOutcome.ACCEPTED
    polling = {"interval": 0.1, "max_interval": 0.1, "not_found_grace": 0, "give_up_after": 0.1}
    await bench.change(polling=PollingConfig(**polling))
    await bench.finish("expired", plan=Plan(queued=1e9))
    await until(lambda: bench.done() == 3)
    results = {told.call: told.event["data"]["status"] for told in receiver.told}
    assert results == {"polled": "answered", "called-back": "busy", "expired": "expired"}


async def test_nobody_waits_for_a_target_that_hangs(bench: Bench, receiver: Receiver) -> None:
    hanging = Receiver()

    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(1e6)
        raise AssertionError

    hanging.answer = hang
    async with hanging:
        slow = target("slow", hanging, max_concurrency=3).model_copy(update={"timeout": 1e6})
        await bench.change(notify=(target("t", receiver), slow), shutdown_timeout=1e6)
        names = [f"c{number}" for number in range(200)]
        await bench.finish(*names)
        await until(lambda: bench.done() == 200)
        assert sorted(receiver.calls) == sorted(names)
        assert len(hanging.told) == 3  # as many as may be under way
        # What is not sent is left to others.
        assert bench.in_ledger("target = 'slow' AND attempts > 0") == 3
        async with deadline():
            await bench.stop()


async def test_a_target_that_goes_and_comes_back(bench: Bench, receiver: Receiver) -> None:
    await receiver.stop()
    await bench.finish("a")
    was = bench.config.notify
    await bench.change(notify=())
    assert not any("target" in sample.labels for sample in samples(bench.service.metrics))
    await bench.finish("nobody-is-told")
    await receiver.start()
    await bench.change(notify=was)
    await until(lambda: bench.done() == 1)
    assert receiver.calls == ["a"]


async def test_what_a_removed_target_was_not_told_is_kept(bench: Bench, receiver: Receiver) -> None:
    receiver.answers(500)
    await bench.change(notify=(target("t", receiver, give_up_after=1.0),))
    await bench.finish("a")
    await until(lambda: len(receiver.told) >= 1)
    await bench.change(notify=())
    kept = "given_up_notifications"
    async with deadline():
        while not bench.in_ledger(table=kept):
            await bench.service.notify.prune(0.0)
            await asyncio.sleep(0.1)
    assert bench.in_ledger() == 0
    await bench.service.notify.prune(time.time() + 60)
    assert bench.in_ledger(table=kept) == 0


async def test_a_target_that_moves(bench: Bench, receiver: Receiver) -> None:
    receiver.answers(500)
    await bench.finish("a")
    await until(lambda: len(receiver.told) >= 1)
    async with Receiver() as other:
        await bench.change(notify=(target("t", other),))
        await until(lambda: bench.done() == 1)
        assert other.calls == ["a"]
        await bench.finish("b")
        await until(lambda: other.calls == ["a", "b"])
        await bench.stop()
