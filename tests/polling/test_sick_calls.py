"""Calls that the provider never answers properly, beside healthy ones, in virtual time."""

from __future__ import annotations

import asyncio
import gc
import random
from functools import cache
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from benchmarks import virtual_time
from exporter.calls import CallState, GiveUpPolicy, Status, WatchedCall
from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.polling.circuit_breaker import MAX_PAUSE
from tests.polling.scene import BUSY, QUEUED, Scene, now

HEALTHY = 60

AUTH = Answer(Outcome.AUTH, "101")
DOWN = Answer(Outcome.CONNECTION)
# One of each outcome that a verdict or the breaker tells apart; codes and outcomes: `test_verdict`.
SICK: dict[str, Answer] = {
    "timeout": Answer(Outcome.TIMEOUT),
    "another_id": BUSY._replace(reference_id="another"),
    "code_103": Answer(Outcome.API_ERROR, "103"),
    "http_429": Answer(Outcome.THROTTLED),
    "http_503_retry_after": Answer(Outcome.THROTTLED, retry_after=900.0),
    "code_101": AUTH,
}
SHARES = {"one": 1, "50 %": HEALTHY, "90 %": 9 * HEALTHY}


async def _play(kind: str | None, sick: int, *, adaptive: bool) -> float:
    """Return after how many seconds all healthy calls were counted."""
    random.seed(1)  # the poller's choices
    chance, scene = random.Random(3), Scene()
    scene.configure(adaptive=adaptive)
    healthy = [f"healthy-{number}" for number in range(HEALTHY)]
    scene.lives = {name: chance.uniform(10, 600) for name in healthy}
    names = [f"sick-{number}" for number in range(sick)]
    scene.replies = dict.fromkeys(names, SICK[kind]) if kind else {}
    # Where the provider answers with `Retry-After`, the account is one that it has answered:
    # else two new calls that agree are all that can be known.
    if kind is not None and "retry_after" in kind:
        scene.watch(*healthy)
        await asyncio.sleep(5)
        scene.watch(*names)
    else:
        scene.watch(*names, *healthy)
    counted = await scene.until_finished(*healthy)
    assert {found.status for _, found in scene.finished.values()} == {Status.BUSY}
    await scene.poller.stop(1)
    assert not scene.failures
    return counted


@cache
def _alone(*, adaptive: bool) -> float:
    return virtual_time.run(_play(None, 0, adaptive=adaptive))


@pytest.mark.parametrize("adaptive", [False, True], ids=["growing", "adaptive"])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", SICK)
def test_healthy_calls_are_counted_nearly_as_fast(kind: str, share: str, *, adaptive: bool) -> None:
    within = 3 if share == "90 %" else 1.5
    took = virtual_time.run(_play(kind, SHARES[share], adaptive=adaptive))
    assert took <= within * _alone(adaptive=adaptive)


@pytest.mark.parametrize("kind", SICK)
async def test_sick_calls_back_off_and_expire(scene: Scene, kind: str) -> None:
    scene.configure(give_up=GiveUpPolicy(600.0, 7_200.0))
    scene.replies["sick"] = SICK[kind]
    scene.lives = {f"healthy-{number}": 9_000.0 for number in range(5)}
    scene.watch("sick", *scene.lives)
    assert 7_200 <= await scene.until_finished("sick") <= 7_200 + 300 * 1.1
    assert scene.finished["sick"][1].status is Status.EXPIRED
    asked = zip(scene.asked, scene.asked_at, strict=True)
    waits = [
        after - before for before, after in pairwise(at for name, at in asked if name == "sick")
    ]
    assert all(wait >= 270 for wait in waits[6:])
    assert len(waits) < 40


@pytest.mark.parametrize("kind", SICK)
async def test_sick_calls_take_a_tenth_of_the_rate_while_others_wait(
    scene: Scene, kind: str
) -> None:
    """Each call is due all the time: 100 of either kind, where 20 a second can be polled."""
    scene.configure(interval=1.0, max_interval=1.0)
    names = [f"sick-{number}" for number in range(100)]
    scene.replies = dict.fromkeys(names, SICK[kind])
    scene.lives = {f"healthy-{number}": 1e9 for number in range(100)}
    scene.watch(*scene.lives)
    await asyncio.sleep(60)
    scene.watch(*names)
    await asyncio.sleep(240)
    sick, all_of_them = scene.requests(180, 300, "sick"), scene.requests(180, 300)
    assert all_of_them >= 0.9 * 120 * 20
    assert sick <= 0.11 * all_of_them
    if "retry_after" not in kind:
        assert sick >= 0.08 * all_of_them


@pytest.mark.parametrize("known", [CallState.QUEUED, CallState.NEW])
async def test_refused_keys_cost_two_requests_and_then_one_for_each_pause(
    scene: Scene, known: CallState
) -> None:
    scene.for_all = AUTH
    names = [f"call-{number}" for number in range(200)]
    scene.watch(*names, state=known)
    await asyncio.sleep(20)
    assert scene.requests() == len(set(scene.asked)) == scene.stats.polls.codes["101"] == 2
    assert scene.poller.breaker.reason is Outcome.AUTH
    assert scene.observed == []
    assert scene.stats.pause_ends > now()
    await asyncio.sleep(4 * 3600 - 20)
    assert scene.requests() <= 85
    scene.for_all = None
    assert await scene.until_finished(*names) <= 4 * 3600 + MAX_PAUSE * 1.1 + 60
    assert scene.stats.authorized


@pytest.mark.parametrize("reply", [DOWN, Answer(Outcome.HTTP_ERROR), Answer(Outcome.THROTTLED)])
async def test_an_outage_costs_one_request_for_each_pause(scene: Scene, reply: Answer) -> None:
    scene.lives = {f"call-{number}": 1_800.0 for number in range(200)}
    scene.watch(*scene.lives)
    await asyncio.sleep(120)
    scene.for_all = reply
    await asyncio.sleep(3_600)
    assert scene.requests(180, 3_720) <= 3_600 / (120 * 0.9) + 8
    scene.for_all = None
    assert await scene.until_finished(*scene.lives) <= 3_720 + 120 * 1.1 + 60


async def test_throttling_slows_the_account_until_nothing_is_refused(scene: Scene) -> None:
    """The provider takes 8 requests a second, and 20 are configured."""
    scene.configure(interval=1.0, max_interval=5.0)
    scene.allowed = 8
    scene.lives = {f"call-{number}": 1e9 for number in range(200)}
    scene.watch(*scene.lives)
    await asyncio.sleep(600)
    outcomes = scene.stats.polls.outcomes
    assert outcomes[Outcome.THROTTLED] <= 0.1 * outcomes[Outcome.OK]
    assert outcomes[Outcome.OK] >= 600 * 2


@pytest.mark.parametrize("calls", [2, 7, 40])
@pytest.mark.parametrize("refused_before", [False, True])
async def test_calls_that_were_all_refused_at_once_show_that_the_account_was(
    scene: Scene, calls: int, *, refused_before: bool
) -> None:
    """Each is to wait for as long as the provider asks, and none is left to confirm it."""
    scene.configure(interval=1.0, max_interval=1.5, rate_limit=1000.0)
    scene.lives = {f"call-{number}": 1e9 for number in range(calls)}
    scene.watch(*scene.lives)
    if refused_before:
        await asyncio.sleep(60)
        scene.replies["call-0"] = Answer(Outcome.THROTTLED)
        await asyncio.sleep(10)
        scene.replies.clear()
    await asyncio.sleep(120)
    begun = now()
    scene.for_all = Answer(Outcome.THROTTLED, retry_after=900.0)
    await asyncio.sleep(120)
    assert scene.stats.pause_ends
    assert scene.requests(begun) <= calls + 60


async def test_one_sick_call_left_alone_does_not_pause_its_account_for_those_to_come(
    scene: Scene,
) -> None:
    scene.replies["sick"] = AUTH
    scene.watch("sick")
    await asyncio.sleep(5 * 3600)
    assert scene.poller.breaker.reason is Outcome.AUTH
    scene.watch("healthy")
    assert await scene.until_finished("healthy") < 5 * 3600 + 20


async def test_old_calls_of_an_account_that_is_refused_for_long_expire_unasked(
    scene: Scene,
) -> None:
    scene.configure(give_up=GiveUpPolicy(600.0, 7_200.0))
    scene.for_all = AUTH
    names = [f"call-{number}" for number in range(500)]
    scene.watch(*names, state=CallState.QUEUED)
    await asyncio.sleep(3_600)
    scene.watch("young")
    assert 7_200 <= await scene.until_finished(*names) <= 7_200 + MAX_PAUSE * 1.1 + 300
    assert "young" not in scene.finished
    assert {found.status for _, found in scene.finished.values()} == {Status.EXPIRED}
    assert scene.requests() < 90


async def test_calls_that_failed_with_their_account_are_polled_again_with_it(scene: Scene) -> None:
    """They do not wait for their own back-off, which has grown meanwhile."""
    scene.lives = {f"call-{number}": 1_000.0 for number in range(3)}
    scene.watch(*scene.lives)
    await asyncio.sleep(60)
    scene.for_all = DOWN
    await asyncio.sleep(3_600)
    scene.for_all = None
    assert await scene.until_finished(*scene.lives) <= 3_660 + 300 * 1.1 + 5


async def test_another_request_that_keeps_failing_says_nothing_about_the_account(
    scene: Scene,
) -> None:
    scene.lives = {f"call-{number}": 600.0 for number in range(20)}
    scene.watch(*scene.lives)
    await asyncio.sleep(60)
    for _ in range(100):
        await scene.request(AUTH, 0.0)
        await asyncio.sleep(5)
        assert scene.poller.breaker.reason is None
    assert await scene.until_finished(*scene.lives) < 600 + 300 * 1.1


async def test_a_sick_call_does_not_show_the_credentials_as_refused(scene: Scene) -> None:
    scene.replies["sick"] = AUTH
    scene.lives = {f"healthy-{number}": 9_000.0 for number in range(20)}
    scene.watch("sick", *scene.lives)
    for _ in range(100):
        await asyncio.sleep(30)
        assert scene.stats.authorized is True
    assert scene.stats.polls.codes["101"] > 5


async def test_what_is_logged_of_a_pause(scene: Scene) -> None:
    with capture_logs() as logs:
        scene.watch("a", "b", "c", state=CallState.QUEUED)
        scene.for_all = AUTH._replace(message="Authorize Failed")
        await asyncio.sleep(300)
        scene.for_all = QUEUED
        await scene.until(lambda: scene.poller.breaker.reason is None)
    assert scene.stats.pause_ends == 0
    assert [line["event"] for line in logs] == ["account paused", "account resumed"]
    assert (logs[0]["code"], logs[0]["message"]) == ("101", "Authorize Failed")


async def test_calls_that_failed_are_polled_again_with_new_credentials(scene: Scene) -> None:
    scene.for_all = Answer(Outcome.THROTTLED, retry_after=900.0)
    names = [f"call-{number}" for number in range(3)]
    scene.watch(*names)
    await asyncio.sleep(60)
    scene.for_all = None
    scene.poller.retry()
    assert scene.stats.pause_ends == 0
    assert await scene.until_finished(*names) < 90


@pytest.mark.parametrize("lives", [0.0, 40.0], ids=["finished at once", "polled for a while"])
@pytest.mark.parametrize("kind", ["code_101", "http_429", "timeout", "http_503_retry_after"])
async def test_sick_calls_that_keep_coming_do_not_hold_up_healthy_ones(
    scene: Scene, kind: str, lives: float
) -> None:
    """Two healthy calls and a sick one each second."""
    for number in range(600):
        scene.lives |= {f"healthy-{number}-{one}": lives for one in "ab"}
        scene.replies[f"sick-{number}"] = SICK[kind]
        scene.watch(f"healthy-{number}-a", f"sick-{number}", f"healthy-{number}-b")
        await asyncio.sleep(1)
    delays = scene.delays("healthy", 60)
    assert len(delays) >= 950
    assert delays[int(0.95 * len(delays))] <= 20


@pytest.mark.parametrize("calls", [1, 3, 200])
@pytest.mark.parametrize("kind", ["code_101", "http_429", "timeout"])
async def test_outages_that_come_again_cost_few_requests_each(
    scene: Scene, kind: str, calls: int
) -> None:
    scene.lives = {f"call-{number}": 1e9 for number in range(calls)}
    scene.watch(*scene.lives)
    await asyncio.sleep(150)
    for _ in range(4):
        begin, scene.for_all = now(), SICK[kind]
        await asyncio.sleep(600)
        assert scene.requests(begin, begin + 600) <= 20
        scene.for_all = None
        await asyncio.sleep(150)


async def test_an_id_that_is_throttled_now_and_then_does_not_slow_its_account(
    scene: Scene,
) -> None:
    scene.configure(interval=5.0, max_interval=5.0)
    scene.lives = {f"call-{number}": 1e9 for number in range(90)}
    scene.watch(*scene.lives)
    for number in range(600):
        scene.replies = {"call-0": SICK["http_429"]} if number % 2 else {}
        await asyncio.sleep(1)
    assert scene.requests(300, 600) >= 0.9 * 300 * 90 / 5


async def test_removed_calls_leave_nothing_behind_while_their_account_is_paused(
    scene: Scene,
) -> None:
    scene.for_all = AUTH
    scene.watch("first", "second")
    await asyncio.sleep(3_600)
    for number in range(20_000):
        scene.watch(f"removed-{number}")
        scene.poller.remove(len(scene.placed))
    calls = [it for it in gc.get_objects() if isinstance(it, WatchedCall)]
    assert sum(call.reference_id.startswith("removed") for call in calls) <= 5_000


async def test_refused_keys_are_shown_within_seconds_where_one_call_is_left_to_ask(
    scene: Scene,
) -> None:
    """It was answered just now, and no other call can confirm what it says."""
    scene.lives = {"only": 1e9}
    scene.watch("only")
    await asyncio.sleep(40)
    scene.for_all = AUTH
    sent = scene.requests()
    await scene.until(lambda: scene.requests() > sent)
    await asyncio.sleep(5)
    assert scene.stats.authorized is False
    assert scene.requests() - sent == 2
