"""From a call's end to whoever is to be told: the whole service, and a real receiver."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from exporter.calls import CallbackOutcome
from exporter.config import PollingConfig
from exporter.errors import LedgerError
from exporter.esms.answers import read_callback
from exporter.ids import reference_id
from exporter.ledger.outbox import Settled
from exporter.ledger.records import NewCall
from exporter.notify.sender import AHEAD
from exporter.simulator import Plan
from tests.notify.bench import Bench, target
from tests.notify.receiver import SECRET, Receiver, ok
from tests.waiting import DEADLINE, deadline, until

BUSY = Plan(duration=0, call_status="BUSY", sent_result=0)


async def test_a_finished_call_is_told_at_once(bench: Bench, receiver: Receiver) -> None:
    await bench.finish("a", plan=Plan(duration=7, ivr="1"))
    await until(lambda: bench.done() == 1)
    (told,) = receiver.told
    assert receiver.bad == []
    data = told.event["data"]
    shown = [data[key] for key in ("reference_id", "result", "status", "duration", "key")]
    assert shown == ["a", "success", "answered", 7.0, "1"]
    assert data["labels"] == {"campaign": "otp"}
    await until(lambda: bench.pending() == 0)
    assert bench.requests("ok") == 1


async def test_however_a_call_ends_it_is_told(bench: Bench, receiver: Receiver) -> None:
    """By a poll, by a callback, and by no answer at all."""
    await bench.finish("polled")
    bench.config = bench.config.model_copy(
        update={
            "polling": PollingConfig(
                interval=0.1, max_interval=0.1, not_found_grace=0.0, give_up_after=0.1
            )
        }
    )
    calls = bench.running.calls
    bench.simulator.add_call("main", "called-back", Plan(queued=1e9))
    await calls.watch(None, [NewCall("main", reference_id("called-back"), {})])
    record = await calls.find("main", reference_id("called-back"))
    assert record is not None
    told_by = {"SMSID": "called-back", "SendStatus": "5", "SendSuccess": "1", "CallStatus": "BUSY"}
    answer = read_callback(told_by)
    assert await calls.accept(record, answer) is CallbackOutcome.ACCEPTED
    await bench.running.reload()
    await bench.finish("expired", plan=Plan(queued=1e9))
    await until(lambda: bench.done() == 3)
    results = {told.call: told.event["data"]["status"] for told in receiver.told}
    assert results == {"polled": "answered", "called-back": "busy", "expired": "expired"}


async def test_only_what_is_wanted_is_told(bench: Bench, receiver: Receiver) -> None:
    bench.notify(target("t", receiver, results=("failure",), labels={"campaign": ("otp", "x")}))
    await bench.running.reload()
    await bench.finish("good")
    await bench.finish("bad", plan=BUSY)
    await bench.finish("bad-but-other", plan=BUSY, campaign="reminder")
    await until(lambda: bench.done() == 1)
    await asyncio.sleep(0.3)
    assert receiver.calls == ["bad"]


async def test_a_target_that_is_down_gets_all_when_it_is_back(
    bench: Bench, receiver: Receiver
) -> None:
    await receiver.stop()
    names, before = [f"c{number}" for number in range(100)], time.time() - 1
    with capture_logs() as logs:
        await bench.finish(*names)
        await until(lambda: bench.pending() == 100)
        await asyncio.sleep(1)
        tried = bench.requests("connection")
        # Those that were under way, and then one after each pause.
        pauses = (time.time() - before) / 0.375
        assert 2 <= tried <= 8 + 12 + pauses
        oldest = bench.running.metrics.notifications_oldest.labels("t").value
        assert before <= oldest <= time.time()
        await receiver.start()
        await until(lambda: bench.done() == 100)
    assert sorted(receiver.calls) == sorted(names)
    events = [log["event"] for log in logs if "target" in log]
    assert events == ["notification failed", "target paused", "target resumed"]


@pytest.mark.parametrize("status", [302, 401, 404, 500, 503])
async def test_what_is_not_taken_is_tried_again(
    bench: Bench, receiver: Receiver, status: int
) -> None:
    receiver.answers(status)
    await bench.finish("a")
    await until(lambda: len(receiver.told) == 2)
    receiver.answer = ok
    await until(lambda: bench.done() == 1)
    assert len(receiver.times) == 1
    bodies = [told.event for told in receiver.told]
    assert all(body == bodies[0] for body in bodies)


async def test_one_that_is_not_taken_does_not_hold_up_others(
    bench: Bench, receiver: Receiver
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        bad = (await request.json())["subject"] == "bad"
        return web.Response(status=422 if bad else 200)

    receiver.answer = answer
    await bench.finish("bad", *(f"c{number}" for number in range(20)))
    await until(lambda: bench.done() == 20)
    await until(lambda: receiver.calls.count("bad") == 2)
    await until(lambda: bench.pending() == 1)
    receiver.answer = ok
    await until(lambda: bench.done() == 21)


async def test_a_target_that_asks_for_a_rest_gets_it(bench: Bench, receiver: Receiver) -> None:
    receiver.answers(429, Retry_After="2")
    await bench.finish("a")
    await until(lambda: bench.requests("throttled") == 1)
    await bench.finish("b")
    await until(lambda: bench.requests("throttled") == 2)
    receiver.answer = ok
    await bench.finish("c", "d")
    await until(lambda: bench.done() == 4)
    _, second, *others = (told.at for told in receiver.told)
    assert min(others) - second > 1.9


async def test_the_rest_is_kept_whatever_else_was_under_way(
    bench: Bench, receiver: Receiver
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if (await request.json())["subject"] in ("first", "second"):
            return web.Response(status=429, headers={"Retry-After": "2"})
        await asyncio.sleep(0.5)
        return web.Response()

    receiver.answer = answer
    await bench.finish("a", "b", "c", "first", "second")
    await until(lambda: bench.requests("throttled") == 2)
    asked = max(told.at for told in receiver.told if told.call in ("first", "second"))
    await bench.finish("later")
    receiver.answer = ok
    await until(lambda: bench.done() == 6)
    later = [told.at for told in receiver.told if told.call == "later"]
    assert later[0] - asked > 1.9


async def test_what_is_claimed_while_a_rest_begins_waits_for_its_end(
    bench: Bench, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = bench.sender()._outbox
    step = outbox.step

    def slow(*given: Any, **more: Any) -> object:  # Any: whatever it is given
        time.sleep(0.1)
        return step(*given, **more)

    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.07)
        return web.Response(status=429, headers={"Retry-After": "2"})

    monkeypatch.setattr(outbox, "step", slow)
    receiver.answer = answer
    for name in "abcd":
        await bench.finish(name)
    await until(lambda: bench.pending() == 4)
    await until(lambda: bench.requests("throttled") >= 1)
    begun = max(told.at for told in receiver.told)
    receiver.answer = ok
    await until(lambda: bench.done() == 4)
    later = [told.at for told in receiver.told if told.at > begun]
    assert min(later) - begun > 1.5


async def test_a_bug_ends_the_exporter(
    bench: Bench, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def post(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(bench.sender()._poster, "post", post)
    await bench.finish("a")
    failed = bench.running.failed
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(asyncio.shield(failed), DEADLINE)
    service, bench.service = bench.running, None
    await service.stop()


async def test_what_is_gone_is_given_up(bench: Bench, receiver: Receiver) -> None:
    receiver.answers(410)
    await bench.finish("a")
    await until(lambda: bench.done("gave_up") == 1)
    receiver.answer = ok
    await bench.finish("b")
    await until(lambda: bench.done() == 1)
    assert receiver.calls == ["a", "b"]


async def test_what_is_not_taken_in_time_is_given_up(bench: Bench, receiver: Receiver) -> None:
    await receiver.stop()
    bench.notify(target("t", receiver, give_up_after=1.0))
    await bench.running.reload()
    await bench.finish(*(f"c{number}" for number in range(20)))
    await until(lambda: bench.done("gave_up") == 20)
    await until(lambda: bench.pending() == 0)
    await receiver.start()
    await bench.finish("later")
    await until(lambda: bench.done() == 1)
    assert receiver.calls == ["later"]


async def test_nobody_waits_for_a_target_that_hangs(bench: Bench, receiver: Receiver) -> None:
    hanging = Receiver()

    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(1e6)
        raise AssertionError

    hanging.answer = hang
    async with hanging:
        slow = target("slow", hanging, max_concurrency=3).model_copy(update={"timeout": 1e6})
        bench.notify(target("t", receiver), slow)
        bench.config = bench.config.model_copy(update={"shutdown_timeout": 1e6})
        await bench.running.reload()
        names = [f"c{number}" for number in range(200)]
        await bench.finish(*names)
        await until(lambda: bench.done() == 200)
        assert sorted(receiver.calls) == sorted(names)
        assert len(hanging.told) == 3  # as many as may be under way
        held = bench.sender("slow")
        # What is not sent soon stays in the ledger.
        assert len(held._queue) + len(held._sending) <= (AHEAD + 1) * 3
        async with deadline():
            await bench.stop()


async def test_a_restart_goes_on_where_it_was(bench: Bench, receiver: Receiver) -> None:
    await receiver.stop()
    await bench.finish("a", "b")
    await bench.stop()
    await receiver.start()
    await bench.start()
    await until(lambda: bench.done() == 2)
    assert sorted(receiver.calls) == ["a", "b"]


async def test_what_is_under_way_at_the_end_may_end(bench: Bench, receiver: Receiver) -> None:
    async def slowly(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.8)
        return web.Response()

    receiver.answer = slowly
    bench.notify(target("t", receiver, timeout=10.0, max_concurrency=1))
    await bench.running.reload()
    await bench.finish("a", "b")
    await until(lambda: len(receiver.told) == 1)
    await bench.stop()
    assert len(receiver.told) == 1
    await bench.start()
    await until(lambda: bench.done() == 1)
    # Neither twice, nor never.
    assert sorted(receiver.calls) == ["a", "b"]


async def test_a_target_that_goes_and_comes_back(bench: Bench, receiver: Receiver) -> None:
    await receiver.stop()
    await bench.finish("a")
    was = bench.config.notify
    bench.notify()
    await bench.running.reload()
    page = "".join(
        line for family in bench.running.families() for line in family.lines(openmetrics=False)
    )
    assert 'target="' not in page
    await bench.finish("nobody-is-told")
    await receiver.start()
    bench.notify(*was)
    await bench.running.reload()
    await until(lambda: bench.done() == 1)
    assert receiver.calls == ["a"]


async def test_a_target_that_moves(bench: Bench, receiver: Receiver) -> None:
    receiver.answers(500)
    await bench.finish("a")
    await until(lambda: len(receiver.told) >= 1)
    async with Receiver() as other:
        bench.notify(target("t", other))
        await bench.running.reload()
        await until(lambda: bench.done() == 1)
        assert other.calls == ["a"]
        await bench.finish("b")
        await until(lambda: other.calls == ["a", "b"])
        await bench.stop()


async def test_a_ledger_that_fails_in_between(
    bench: Bench, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was delivered and could not be settled is settled once it can be, and counted once."""
    # Any, below: whatever else it is given.
    outbox = bench.sender()._outbox
    step = outbox.step
    failures = 3

    def fails(target: str, settled: Settled, *given: Any, **more: Any) -> object:
        nonlocal failures
        if any(settled) and failures:
            failures -= 1
            raise LedgerError("locked")
        return step(target, settled, *given, **more)

    monkeypatch.setattr(outbox, "step", fails)
    await bench.finish("a", "b")
    await until(lambda: bench.done() == 2)
    assert failures == 0
    assert sorted(receiver.calls) == ["a", "b"]


async def test_at_most_as_many_at_a_time_as_may_be(bench: Bench, receiver: Receiver) -> None:
    now = most = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return web.Response()

    receiver.answer = answer
    bench.notify(target("t", receiver, max_concurrency=5))
    await bench.running.reload()
    await bench.finish(*(f"c{number}" for number in range(60)))
    await until(lambda: bench.done() == 60)
    assert most == 5


async def test_secrets_are_not_told(bench: Bench, receiver: Receiver) -> None:
    with capture_logs() as logs:
        for status in (500, 410):
            receiver.answers(status)
            await bench.finish(f"a{status}")
            await until(lambda: bench.requests("http_error") > 0)
        await receiver.stop()
        await bench.finish("b")
        await until(lambda: bench.requests("connection") > 0)
        await bench.stop()
    assert logs
    for hidden in ("made-up-url-token", SECRET, SECRET[6:], str(receiver.port)):
        assert hidden not in repr(logs)


async def test_what_nobody_wants_any_more_is_forgotten(bench: Bench, receiver: Receiver) -> None:
    await receiver.stop()
    bench.notify(target("t", receiver, give_up_after=1.0))
    await bench.running.reload()
    await bench.finish("a")
    bench.notify()
    await bench.running.reload()
    await asyncio.sleep(1.1)
    with capture_logs() as logs:
        await bench.running._notify.tidy()
        await bench.running._notify.tidy()
    assert [log["count"] for log in logs] == [1]
