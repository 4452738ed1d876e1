from __future__ import annotations

import asyncio
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from benchmarks import virtual_time
from exporter.calls import CallState, Finished, GiveUpPolicy, PollAgain, Result, Status, WatchedCall
from exporter.esms.codes import Outcome
from exporter.ids import Kind, reference_id
from exporter.polling.intervals import ENOUGH
from exporter.polling.timing_wheel import TICK
from tests.polling.scene import BUSY, QUEUED, Scene
from tests.waiting import until

CONCURRENCY = 4
FAST: dict[str, Any] = {
    "interval": 0.05,
    "max_interval": 0.2,
    "give_up": GiveUpPolicy(60, 600),
    "rate_limit": 10_000,
    "max_concurrency": CONCURRENCY,
}
SELDOM = {**FAST, "interval": 600, "max_interval": 600, "max_concurrency": 1}


@pytest_asyncio.fixture
async def scene(scene: Scene) -> Scene:
    """An account that is polled often, and whose calls are queued."""
    scene.configure(**FAST)
    scene.for_all = QUEUED
    return scene


async def test_a_call_is_asked_for_until_it_has_finished(scene: Scene) -> None:
    scene.watch("a")
    await until(lambda: len(scene.asked) >= 3)
    assert scene.stats.open[Kind.CALL][CallState.QUEUED] == 1
    scene.for_all = BUSY
    await until(lambda: not scene.poller.calls)
    assert scene.observed[-1] == ("a", Finished(Result.SUCCESS, Status.BUSY))
    asked = len(scene.asked)
    await asyncio.sleep(0.3)
    assert len(scene.asked) == asked
    assert (
        scene.stats.polls.outcomes[Outcome.OK] == asked == sum(scene.stats.polls.durations.counts)
    )
    assert sum(scene.stats.lags.counts) == asked
    assert list(scene.stats.open[Kind.CALL].values()) == [0] * len(CallState)
    assert scene.stats.last_success == pytest.approx(virtual_time.wall(), abs=2)


async def test_a_lowered_limit_holds_though_calls_are_always_due(scene: Scene) -> None:
    scene.watch(*(f"c{n}" for n in range(100)))
    await until(lambda: scene.under_way == CONCURRENCY)
    scene.configure(**FAST | {"max_concurrency": 1})
    await until(lambda: scene.under_way == 1)
    scene.most, asked = 0, len(scene.asked)
    await until(lambda: len(scene.asked) > asked + 100)
    assert scene.most == 1
    assert scene.poller.backlog()[0] > CONCURRENCY
    scene.configure(**FAST)
    await until(lambda: scene.under_way == CONCURRENCY)


async def test_a_call_that_is_let_go_means_nothing_any_more(scene: Scene) -> None:
    scene.watch("a")
    await until(lambda: scene.stats.open[Kind.CALL][CallState.QUEUED] == 1)
    scene.hold = asyncio.Event()
    await until(lambda: scene.under_way == 1)
    before = list(scene.observed)
    scene.poller.remove(1)
    scene.poller.remove(1)
    scene.for_all = BUSY
    scene.hold.set()
    await asyncio.sleep(0.1)
    assert scene.observed == before
    assert list(scene.stats.open[Kind.CALL].values()) == [0] * len(CallState)
    gone = WatchedCall(1, reference_id("a"), 0.0)
    scene.poller.apply_committed(gone, PollAgain(CallState.QUEUED), 1.0)
    assert scene.stats.open[Kind.CALL][CallState.QUEUED] == 0


async def test_the_answer_for_another_call_is_a_bad_response(scene: Scene) -> None:
    scene.for_all = QUEUED._replace(reference_id="b")
    scene.watch("a")
    await until(lambda: scene.stats.polls.outcomes[Outcome.BAD_RESPONSE] > 0)
    assert scene.stats.polls.outcomes[Outcome.OK] == 0
    assert scene.observed == []


async def test_an_odd_duration_is_told(scene: Scene) -> None:
    scene.for_all = BUSY._replace(call_status="ANSWERED", duration=-5.0)
    with capture_logs() as logs:
        scene.watch("a")
        await until(lambda: not scene.poller.calls)
    assert [(line["event"], line["reference_id"], line["field"]) for line in logs] == [
        ("unexpected value in answer", "a", "call_duration")
    ]


async def test_watching_twice_is_watching_once(scene: Scene) -> None:
    scene.hold = asyncio.Event()
    scene.watch("a")
    (call,) = scene.poller.calls.values()
    scene.poller.add([WatchedCall(call.id, call.reference_id, 0.0)])
    assert list(scene.poller.calls.values()) == [call]
    assert scene.stats.open[Kind.CALL][CallState.NEW] == 1
    scene.poller.update_oldest_open()
    assert scene.stats.oldest_open == call.first_watched
    scene.poller.remove(call.id)
    scene.poller.update_oldest_open()
    assert scene.stats.oldest_open == 0
    scene.hold.set()


async def test_calls_that_are_answered_together_share_their_times(scene: Scene) -> None:
    scene.watch(*(f"c{n}" for n in range(40)))
    calls = list(scene.poller.calls.values())
    await until(lambda: all(call.state is CallState.QUEUED for call in calls))
    times = [time for call in calls for time in (call.last_polled, call.state_since)]
    assert all(time % 1 == 0 for time in times)
    assert len({id(time) for time in times}) == len(set(times))


async def test_calls_that_are_known_already_are_spread_out(scene: Scene) -> None:
    scene.configure(**FAST | {"interval": 0.5, "max_interval": 0.5, "max_concurrency": 50})
    scene.watch(*(f"c{n}" for n in range(40)), state=CallState.QUEUED)
    await asyncio.sleep(0.25)
    assert 5 <= len(scene.asked) <= 35
    await until(lambda: set(scene.asked) == {f"c{n}" for n in range(40)})


async def test_a_call_that_is_scheduled_for_later_is_hastened(scene: Scene) -> None:
    scene.configure(**SELDOM)
    scene.watch(*"ab")
    await until(lambda: all(call.last_polled for call in scene.poller.calls.values()))
    scene.poller.poll_now(2)
    await until(lambda: scene.asked == ["a", "b", "b"])


@pytest.mark.parametrize(
    ("hastened", "asked"),
    [([2], "abcd"), ([3], "acbd"), ([4, 3, 2], "adcb"), ([3, 3], "acbd")],
)
async def test_a_call_that_is_hinted_at_comes_before_others_that_are_due(
    scene: Scene, hastened: list[int], asked: str
) -> None:
    scene.configure(**SELDOM)
    scene.hold = asyncio.Event()
    scene.watch(*"abcd")
    await until(lambda: scene.under_way == 1)
    await asyncio.sleep(2 * TICK)  # so that now is another tick than theirs
    for row in hastened:
        scene.poller.poll_now(row)
    scene.hold.set()
    await until(lambda: len(scene.asked) == 4)
    assert scene.asked == [*asked]


@pytest.mark.parametrize(("row", "asked"), [(1, ["a", "a"]), (99, ["a"])])
async def test_a_call_that_is_asked_for_is_asked_for_once_more(
    scene: Scene, row: int, asked: list[str]
) -> None:
    scene.configure(**SELDOM)
    scene.hold = asyncio.Event()
    scene.watch("a")
    await until(lambda: scene.under_way == 1)
    for _ in range(3):
        scene.poller.poll_now(row)
    scene.hold.set()
    await until(lambda: scene.asked == asked)
    await asyncio.sleep(3 * TICK)
    assert scene.asked == asked


async def test_a_hint_is_forgotten_with_its_call(scene: Scene) -> None:
    scene.configure(**SELDOM)
    scene.hold = asyncio.Event()
    scene.watch("a")
    await until(lambda: scene.under_way == 1)
    scene.poller.poll_now(1)
    scene.poller.remove(1)
    scene.poller.poll_now(1)
    scene.hold.set()
    await until(lambda: scene.under_way == 0)
    # Its account came back: the same row is another object.
    scene.watch("a")
    await until(lambda: scene.asked == ["a", "a"])
    await asyncio.sleep(3 * TICK)
    assert scene.asked == ["a", "a"]


async def test_stopping_waits_for_what_is_under_way(scene: Scene) -> None:
    scene.hold = asyncio.Event()
    scene.for_all = BUSY
    scene.watch(*"ab")
    await until(lambda: scene.under_way == 1)
    stopping = asyncio.create_task(scene.poller.stop(5))
    await asyncio.sleep(0.05)
    assert not stopping.done()
    scene.hold.set()
    await stopping
    assert [name for name, _ in scene.observed] == ["a"]
    scene.poller.wake()
    assert len(scene.asked) == 1


async def test_stopping_waits_no_longer_than_it_may(scene: Scene) -> None:
    scene.hold = asyncio.Event()
    scene.watch("a")
    await until(lambda: scene.under_way == 1)
    await scene.poller.stop(0.05)
    assert scene.under_way == 0


async def test_a_bug_is_noticed(scene: Scene) -> None:
    scene.for_all = ZeroDivisionError("a bug")
    scene.watch("a")
    await until(lambda: bool(scene.failures))
    assert isinstance(scene.failures.pop(), ZeroDivisionError)


async def test_the_pace_learns_of_calls_that_end(scene: Scene) -> None:
    scene.configure(**FAST | {"max_concurrency": 50}, adaptive=True)
    scene.watch("a")
    await until(lambda: len(scene.asked) >= 3)
    scene.for_all = BUSY
    await until(lambda: not scene.poller.calls)
    intervals = scene.poller.intervals[Kind.CALL]
    assert intervals.durations.calls == 1
    # That it lived for longer than an interval was seen; that it has ended, too.
    before = intervals.durations.ended([0.05, 5.0])
    for n in range(ENOUGH):
        scene.watch(f"b{n}")
    await until(lambda: not scene.poller.calls)
    after = intervals.durations.ended([0.05, 5.0])
    assert intervals.durations.calls == 1 + ENOUGH
    assert list(scene.poller.intervals) == [Kind.CALL]
    assert intervals.plan
    assert before[0] < after[0]
    # All had ended when they were watched: the next call has time, but not for long.
    asked = len(scene.asked)
    scene.watch("c")
    await until(lambda: scene.asked[asked:] == ["c"])


async def test_a_call_that_somebody_told_of_is_known_to_have_ended_then(scene: Scene) -> None:
    scene.configure(**SELDOM, adaptive=True)
    scene.watch("a", age=300)
    await until(lambda: len(scene.asked) == 1)
    for _ in range(2):  # the first is a hint that comes to nothing
        scene.poller.poll_now(1)
        await until(lambda: scene.poller.calls[1].polls == len(scene.asked) > 1)
        scene.for_all = BUSY
    await until(lambda: not scene.poller.calls)
    intervals = scene.poller.intervals[Kind.CALL]
    lives = intervals.durations
    assert lives.ended([310.0])[0] - lives.ended([290.0])[0] > 0.01


async def test_a_bug_in_what_an_answer_means_is_noticed(scene: Scene) -> None:
    scene.watch("a")
    await until(lambda: len(scene.observed) >= 2)  # the account is well
    scene.for_all = BUSY._replace(call_status=None)  # type: ignore[arg-type] # what cannot be
    await until(lambda: bool(scene.failures))
    assert isinstance(scene.failures.pop(), AttributeError)


async def test_an_answer_that_came_last_is_observed_before_the_end(scene: Scene) -> None:
    scene.watch("a")
    await until(lambda: len(scene.observed) >= 2)
    scene.hold = asyncio.Event()
    await until(lambda: scene.under_way == 1)
    scene.for_all = BUSY
    scene.hold.set()
    await scene.poller.stop(1)
    assert scene.observed[-1] == ("a", Finished(Result.SUCCESS, Status.BUSY))
