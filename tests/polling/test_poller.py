from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from benchmarks import virtual_time
from benchmarks.virtual_time import PollingSettings
from exporter.calls import CallState, Finished, GiveUpPolicy, PollAgain, Result, Status, WatchedCall
from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.ids import Kind, ReferenceId, reference_id
from exporter.polling.intervals import ENOUGH
from exporter.polling.poller import Poller
from exporter.polling.stats import AccountStats
from exporter.polling.timing_wheel import TICK
from tests.waiting import until

AUTH = Answer(Outcome.AUTH, "101", message="Authorize Failed")
QUEUED = Answer(Outcome.OK, "100", send_status=2)
BUSY = Answer(Outcome.OK, "100", send_status=5, sent_result=1, call_status="BUSY")
FAST = PollingSettings(0.05, 0.2, GiveUpPolicy(60, 600), 10_000, 4)

Reply = Callable[[ReferenceId], Awaitable[Answer]]


class Provider:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Answer | Exception = QUEUED
        self.hold: asyncio.Event | None = None
        self.under_way = 0
        self.most = 0

    async def send_status(self, reference_id: ReferenceId, _: Kind = Kind.CALL) -> Answer:
        self.asked.append(reference_id)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await (self.hold.wait() if self.hold else asyncio.sleep(0))
        finally:
            self.under_way -= 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Bench:
    """A poller, its provider and its metrics; what it observes is settled at once."""

    def __init__(self) -> None:
        self.provider = Provider()
        self.stats = AccountStats()
        self.failures: list[BaseException] = []
        self.observed: list[tuple[str, Finished | PollAgain]] = []
        self.broken = False
        self.poller = Poller(
            *FAST.sections,
            self.provider.send_status,
            self.stats,
            self._observe,
            self.failures.append,
            virtual_time.wall,
            virtual_time.wall,
        )

    def _observe(self, call: WatchedCall, found: Finished | PollAgain, at: float) -> None:
        if self.broken:
            raise ZeroDivisionError("a bug")
        self.observed.append((call.reference_id, found))
        self.poller.apply_committed(call, found, at)

    def watch(self, *names: str, state: CallState = CallState.NEW, age: float = 0) -> None:
        for name in names:
            row = len(self.poller.calls) + 1
            call = WatchedCall(row, reference_id(name), virtual_time.wall() - age, state)
            self.poller.add(call)
        self.poller.wake()

    def requests(self, outcome: Outcome) -> int:
        return self.stats.polls.outcomes[outcome]


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.poller.stop(1)


async def test_a_call_is_asked_for_until_it_has_finished(bench: Bench) -> None:
    bench.watch("a")
    await until(lambda: len(bench.provider.asked) >= 3)
    assert bench.stats.open[Kind.CALL][CallState.QUEUED] == 1
    bench.provider.answer = BUSY
    await until(lambda: not bench.poller.calls)
    assert bench.observed[-1] == ("a", Finished(Result.SUCCESS, Status.BUSY))
    asked = len(bench.provider.asked)
    await asyncio.sleep(0.3)
    assert len(bench.provider.asked) == asked
    assert bench.requests(Outcome.OK) == asked == sum(bench.stats.polls.durations.counts)
    assert sum(bench.stats.lags.counts) == asked
    assert list(bench.stats.open[Kind.CALL].values()) == [0] * len(CallState)
    assert bench.stats.last_success == pytest.approx(virtual_time.wall(), abs=2)


async def test_one_request_tries_the_account_first(bench: Bench) -> None:
    bench.provider.hold = asyncio.Event()
    bench.watch(*"abcdefgh")
    await asyncio.sleep(0.05)
    assert len(bench.provider.asked) == 1
    bench.provider.hold.set()
    bench.provider.hold = asyncio.Event()
    await until(lambda: bench.provider.under_way == FAST.max_concurrency)
    await asyncio.sleep(0.05)
    assert bench.provider.most == FAST.max_concurrency
    bench.provider.hold.set()


async def test_refused_credentials_cost_two_requests_and_no_call(bench: Bench) -> None:
    bench.provider.answer = AUTH
    with capture_logs() as logs:
        bench.watch(*"abcdefgh")
        await until(lambda: bench.poller.paused is Outcome.AUTH)
    assert len(bench.provider.asked) == len(set(bench.provider.asked)) == 2
    assert [(line["event"], line["code"], line["message"]) for line in logs] == [
        ("account paused", "101", "Authorize Failed")
    ]
    assert bench.stats.polls.codes["101"] == 2
    assert bench.stats.authorized is False
    assert bench.stats.authorized is False
    assert bench.stats.paused_until > virtual_time.wall()
    assert len(bench.poller.calls) == 8
    assert bench.observed == []
    bench.provider.answer = BUSY
    bench.poller.retry()
    assert bench.stats.paused_until == 0
    await until(lambda: len(bench.observed) == 8)
    assert bench.stats.authorized is True


async def test_failures_pause_and_the_pause_is_told_of_once(bench: Bench) -> None:
    bench.provider.answer = Answer(Outcome.CONNECTION, message="no connection")
    with capture_logs() as logs:
        bench.watch(*"abcdefgh")
        await until(lambda: bench.poller.paused is Outcome.CONNECTION)
        await asyncio.sleep(0.05)
        assert len(bench.provider.asked) == 5
        assert bench.requests(Outcome.CONNECTION) == 5
        bench.poller.retry()
        bench.provider.answer = QUEUED
        await until(lambda: len(bench.observed) >= 8)
    assert [line["event"] for line in logs] == ["account paused"]
    assert bench.stats.authorized is True


async def test_a_call_that_is_let_go_means_nothing_any_more(bench: Bench) -> None:
    bench.watch("a")
    await until(lambda: bench.stats.open[Kind.CALL][CallState.QUEUED] == 1)
    bench.provider.hold = asyncio.Event()
    await until(lambda: bench.provider.under_way == 1)
    before = list(bench.observed)
    bench.poller.remove(1)
    bench.poller.remove(1)
    bench.provider.answer = BUSY
    bench.provider.hold.set()
    await asyncio.sleep(0.1)
    assert bench.observed == before
    assert list(bench.stats.open[Kind.CALL].values()) == [0] * len(CallState)
    gone = WatchedCall(1, reference_id("a"), 0.0)
    bench.poller.apply_committed(gone, PollAgain(CallState.QUEUED), 1.0)
    assert bench.stats.open[Kind.CALL][CallState.QUEUED] == 0


async def test_the_answer_for_another_call_is_a_bad_response(bench: Bench) -> None:
    bench.provider.answer = QUEUED._replace(reference_id="b")
    bench.watch("a")
    await until(lambda: bench.requests(Outcome.BAD_RESPONSE) > 0)
    assert bench.requests(Outcome.OK) == 0
    assert bench.observed == []


async def test_an_odd_duration_is_told(bench: Bench) -> None:
    bench.provider.answer = BUSY._replace(call_status="ANSWERED", duration=-5.0)
    with capture_logs() as logs:
        bench.watch("a")
        await until(lambda: not bench.poller.calls)
    assert [(line["event"], line["reference_id"], line["field"]) for line in logs] == [
        ("unexpected value in answer", "a", "call_duration")
    ]


async def test_watching_twice_is_watching_once(bench: Bench) -> None:
    bench.provider.hold = asyncio.Event()
    bench.watch("a")
    (call,) = bench.poller.calls.values()
    bench.poller.add(WatchedCall(call.id, call.reference_id, 0.0))
    assert list(bench.poller.calls.values()) == [call]
    assert bench.stats.open[Kind.CALL][CallState.NEW] == 1
    bench.poller.update_oldest_open()
    assert bench.stats.oldest_open == call.first_watched
    bench.poller.remove(call.id)
    bench.poller.update_oldest_open()
    assert bench.stats.oldest_open == 0
    bench.provider.hold.set()


async def test_calls_that_are_answered_together_share_their_times(bench: Bench) -> None:
    bench.watch(*(f"c{n}" for n in range(40)))
    calls = list(bench.poller.calls.values())
    await until(lambda: all(call.last_polled and call.state_since for call in calls))
    times = [time for call in calls for time in (call.last_polled, call.state_since)]
    assert all(time % 1 == 0 for time in times)
    assert len({id(time) for time in times}) == len(set(times))


async def test_calls_that_are_known_already_are_spread_out(bench: Bench) -> None:
    slow = PollingSettings(0.5, 0.5, FAST.give_up, FAST.rate_limit, 50)
    bench.poller.configure(*slow.sections)
    bench.watch(*(f"c{n}" for n in range(40)), state=CallState.QUEUED)
    await asyncio.sleep(0.25)
    assert 5 <= len(bench.provider.asked) <= 35
    await until(lambda: set(bench.provider.asked) == {f"c{n}" for n in range(40)})


SELDOM = PollingSettings(600, 600, FAST.give_up, FAST.rate_limit, 1)


async def test_a_call_that_is_scheduled_for_later_is_hastened(bench: Bench) -> None:
    bench.poller.configure(*SELDOM.sections)
    bench.watch(*"ab")
    await until(lambda: all(call.last_polled for call in bench.poller.calls.values()))
    bench.poller.poll_now(2)
    await until(lambda: bench.provider.asked == ["a", "b", "b"])


@pytest.mark.parametrize(
    ("hastened", "asked"),
    [([2], "abcd"), ([3], "acbd"), ([4, 3, 2], "adcb"), ([3, 3], "acbd")],
)
async def test_a_call_that_is_hinted_at_comes_before_others_that_are_due(
    bench: Bench, hastened: list[int], asked: str
) -> None:
    bench.poller.configure(*SELDOM.sections)
    bench.provider.hold = asyncio.Event()
    bench.watch(*"abcd")
    await until(lambda: bench.provider.under_way == 1)
    await asyncio.sleep(2 * TICK)  # so that now is another tick than theirs
    for row in hastened:
        bench.poller.poll_now(row)
    bench.provider.hold.set()
    await until(lambda: len(bench.provider.asked) == 4)
    assert bench.provider.asked == [*asked]


@pytest.mark.parametrize(("row", "asked"), [(1, ["a", "a"]), (99, ["a"])])
async def test_a_call_that_is_asked_for_is_asked_for_once_more(
    bench: Bench, row: int, asked: list[str]
) -> None:
    bench.poller.configure(*SELDOM.sections)
    bench.provider.hold = asyncio.Event()
    bench.watch("a")
    await until(lambda: bench.provider.under_way == 1)
    for _ in range(3):
        bench.poller.poll_now(row)
    bench.provider.hold.set()
    await until(lambda: bench.provider.asked == asked)
    await asyncio.sleep(3 * TICK)
    assert bench.provider.asked == asked


async def test_a_hint_is_forgotten_with_its_call(bench: Bench) -> None:
    bench.poller.configure(*SELDOM.sections)
    bench.provider.hold = asyncio.Event()
    bench.watch("a")
    await until(lambda: bench.provider.under_way == 1)
    bench.poller.poll_now(1)
    bench.poller.remove(1)
    bench.poller.poll_now(1)
    bench.provider.hold.set()
    await until(lambda: bench.provider.under_way == 0)
    # Its account came back: the same row is another object.
    bench.watch("a")
    await until(lambda: bench.provider.asked == ["a", "a"])
    await asyncio.sleep(3 * TICK)
    assert bench.provider.asked == ["a", "a"]


async def test_stopping_waits_for_what_is_under_way(bench: Bench) -> None:
    bench.provider.hold = asyncio.Event()
    bench.provider.answer = BUSY
    bench.watch(*"ab")
    await until(lambda: bench.provider.under_way == 1)
    stopping = asyncio.create_task(bench.poller.stop(5))
    await asyncio.sleep(0.05)
    assert not stopping.done()
    bench.provider.hold.set()
    await stopping
    assert [name for name, _ in bench.observed] == ["a"]
    bench.poller.wake()
    assert len(bench.provider.asked) == 1


async def test_stopping_waits_no_longer_than_it_may(bench: Bench) -> None:
    bench.provider.hold = asyncio.Event()
    bench.watch("a")
    await until(lambda: bench.provider.under_way == 1)
    await bench.poller.stop(0.05)
    assert bench.provider.under_way == 0
    assert not bench.failures


async def test_a_bug_is_noticed(bench: Bench) -> None:
    bench.provider.answer = ZeroDivisionError("a bug")
    bench.watch("a")
    await until(lambda: bool(bench.failures))
    assert isinstance(bench.failures[0], ZeroDivisionError)


LEARNING = PollingSettings(0.05, 0.2, FAST.give_up, FAST.rate_limit, 50, adaptive=True)


async def test_the_pace_learns_of_calls_that_end(bench: Bench) -> None:
    bench.poller.configure(*LEARNING.sections)
    bench.watch("a")
    await until(lambda: len(bench.provider.asked) >= 3)
    bench.provider.answer = BUSY
    await until(lambda: not bench.poller.calls)
    intervals = bench.poller.intervals[Kind.CALL]
    assert intervals.durations.calls == 1
    # That it lived for longer than an interval was seen; that it has ended, too.
    before = intervals.durations.ended([0.05, 5.0])
    for n in range(ENOUGH):
        bench.watch(f"b{n}")
    await until(lambda: not bench.poller.calls)
    after = intervals.durations.ended([0.05, 5.0])
    assert intervals.durations.calls == 1 + ENOUGH
    assert list(bench.poller.intervals) == [Kind.CALL]
    assert intervals.plan
    assert before[0] < after[0]
    # All had ended when they were watched: the next call has time, but not for long.
    asked = len(bench.provider.asked)
    bench.watch("c")
    await until(lambda: bench.provider.asked[asked:] == ["c"])


async def test_a_call_that_somebody_told_of_is_known_to_have_ended_then(bench: Bench) -> None:
    often = PollingSettings(600, 600, FAST.give_up, 10_000, 4, adaptive=True)
    bench.poller.configure(*often.sections)
    bench.watch("a", age=300)
    await until(lambda: len(bench.provider.asked) == 1)
    for _ in range(2):  # the first is a hint that comes to nothing
        bench.poller.poll_now(1)
        await until(lambda: bench.poller.calls[1].polls == len(bench.provider.asked) > 1)
        bench.provider.answer = BUSY
    await until(lambda: not bench.poller.calls)
    intervals = bench.poller.intervals[Kind.CALL]
    lives = intervals.durations
    assert lives.ended([310.0])[0] - lives.ended([290.0])[0] > 0.01


async def test_a_bug_in_what_an_answer_means_is_noticed(bench: Bench) -> None:
    bench.watch("a")
    await until(lambda: len(bench.observed) >= 2)  # the account is well
    bench.broken = True
    await until(lambda: bool(bench.failures))
    assert isinstance(bench.failures[0], ZeroDivisionError)


async def test_an_answer_that_came_last_is_observed_before_the_end(bench: Bench) -> None:
    bench.watch("a")
    await until(lambda: len(bench.observed) >= 2)
    bench.provider.hold = asyncio.Event()
    await until(lambda: bench.provider.under_way == 1)
    bench.provider.answer = BUSY
    bench.provider.hold.set()
    await bench.poller.stop(1)
    assert bench.observed[-1] == ("a", Finished(Result.SUCCESS, Status.BUSY))
