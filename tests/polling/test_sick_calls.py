"""Calls that the provider never answers properly, beside healthy ones, in virtual time."""

from __future__ import annotations

import asyncio
import gc
import random
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from structlog.testing import capture_logs

from exporter.calls import CallState, GiveUpPolicy, Status, WatchedCall
from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.polling.circuit_breaker import MAX_PAUSE
from tests.polling.scene import BUSY, QUEUED, SETTINGS, Reply, Scene, run

ADAPTIVE = replace(SETTINGS, adaptive=True)
HEALTHY = 60

AUTH = Answer(Outcome.AUTH, "101")
DOWN = Answer(Outcome.CONNECTION)
# One of each outcome that a verdict or the breaker tells apart; codes and outcomes: `test_verdict`.
SICK: dict[str, Reply] = {
    "timeout": Answer(Outcome.TIMEOUT),
    "another_id": BUSY._replace(reference_id="another"),
    "code_103": Answer(Outcome.API_ERROR, "103"),
    "http_429": Answer(Outcome.THROTTLED),
    "http_503_retry_after": Answer(Outcome.THROTTLED, retry_after=900.0),
    "code_101": AUTH,
}
SHARES = {"one": 1, "50 %": HEALTHY, "90 %": 9 * HEALTHY}


def _play(kind: str | None, sick: int, *, adaptive: bool) -> float:
    """Return after how many seconds all healthy calls were counted."""

    async def play() -> float:
        chance = random.Random(3)
        scene = Scene(ADAPTIVE if adaptive else SETTINGS)
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
        return counted

    return float(run(play))


@cache
def _alone(*, adaptive: bool) -> float:
    return _play(None, 0, adaptive=adaptive)


@pytest.mark.parametrize("adaptive", [False, True], ids=["growing", "adaptive"])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", SICK)
def test_healthy_calls_are_counted_nearly_as_fast(kind: str, share: str, *, adaptive: bool) -> None:
    within = 3 if share == "90 %" else 1.5
    took = _play(kind, SHARES[share], adaptive=adaptive)
    assert took <= within * _alone(adaptive=adaptive)


@pytest.mark.parametrize("kind", SICK)
def test_sick_calls_back_off_and_expire(kind: str) -> None:
    async def play() -> Any:
        scene = Scene(replace(SETTINGS, give_up=GiveUpPolicy(600.0, 7_200.0)))
        scene.replies["sick"] = SICK[kind]
        scene.lives = {f"healthy-{number}": 9_000.0 for number in range(5)}
        scene.watch("sick", *scene.lives)
        await scene.until_finished("sick")
        await scene.poller.stop(1)
        return scene.finished["sick"], scene.asked["sick"]

    (at, found), asked = run(play)
    assert found.status is Status.EXPIRED
    assert 7_200 <= at <= 7_200 + 300 * 1.1
    waits = [after - before for before, after in pairwise(asked)]
    assert all(wait >= 270 for wait in waits[6:])
    assert len(asked) <= 40


@pytest.mark.parametrize("kind", SICK)
def test_sick_calls_take_a_tenth_of_the_rate_while_others_wait(kind: str) -> None:
    """Each call is due all the time: 100 of either kind, where 20 a second can be polled."""

    async def play() -> Any:
        scene = Scene(replace(SETTINGS, interval=1.0, max_interval=1.0))
        names = [f"sick-{number}" for number in range(100)]
        scene.replies = dict.fromkeys(names, SICK[kind])
        scene.lives = {f"healthy-{number}": 1e9 for number in range(100)}
        scene.watch(*scene.lives)
        await asyncio.sleep(60)
        scene.watch(*names)
        await asyncio.sleep(240)
        await scene.poller.stop(1)
        return scene.requests(180, 300, "sick"), scene.requests(180, 300)

    sick, all_of_them = run(play)
    assert all_of_them >= 0.9 * 120 * 20
    assert sick <= 0.11 * all_of_them
    if "retry_after" not in kind:
        assert sick >= 0.08 * all_of_them


@pytest.mark.parametrize("known", [CallState.QUEUED, CallState.NEW])
def test_refused_keys_cost_two_requests_and_then_one_for_each_pause(known: CallState) -> None:
    async def play() -> Any:
        scene = Scene()
        scene.for_all = AUTH
        names = [f"call-{number}" for number in range(200)]
        scene.watch(*names, state=known)
        await asyncio.sleep(20)
        first = scene.requests()
        assert scene.poller.paused is Outcome.AUTH
        await asyncio.sleep(4 * 3600 - 20)
        later = scene.requests()
        scene.for_all = None
        await scene.until_finished(*names)
        await scene.poller.stop(1)
        return first, later, scene

    first, later, scene = run(play)
    assert first == 2
    assert later <= 85
    counted = max(at for at, _ in scene.finished.values())
    assert counted <= 4 * 3600 + MAX_PAUSE * 1.1 + 60
    assert scene.stats.authorized


@pytest.mark.parametrize("reply", [DOWN, Answer(Outcome.HTTP_ERROR), Answer(Outcome.THROTTLED)])
def test_an_outage_costs_one_request_for_each_pause(reply: Reply) -> None:
    async def play() -> Any:
        scene = Scene()
        scene.lives = {f"call-{number}": 1_800.0 for number in range(200)}
        scene.watch(*scene.lives)
        await asyncio.sleep(120)
        scene.for_all = reply
        await asyncio.sleep(3_600)
        sent = scene.requests(180, 3_720)
        scene.for_all = None
        counted = await scene.until_finished(*scene.lives)
        await scene.poller.stop(1)
        return sent, counted

    sent, counted = run(play)
    assert sent <= 3_600 / (120 * 0.9) + 8
    assert counted <= 3_720 + 120 * 1.1 + 60


def test_throttling_slows_the_account_until_nothing_is_refused() -> None:
    """The provider takes 8 requests a second, and 20 are configured."""

    async def play() -> Any:
        scene = Scene(replace(SETTINGS, interval=1.0, max_interval=5.0))
        scene.allowed = 8
        scene.lives = {f"call-{number}": 1e9 for number in range(200)}
        scene.watch(*scene.lives)
        await asyncio.sleep(600)
        await scene.poller.stop(1)
        outcomes = scene.stats.polls.outcomes
        return outcomes[Outcome.OK], outcomes[Outcome.THROTTLED]

    good, throttled = run(play)
    assert throttled <= 0.1 * good
    assert good >= 600 * 2


def test_a_retry_after_that_a_second_call_confirms_is_kept() -> None:
    async def play() -> Any:
        scene = Scene()
        scene.lives = {f"call-{number}": 1e9 for number in range(200)}
        scene.watch(*scene.lives)
        await asyncio.sleep(60)
        scene.for_all = Answer(Outcome.THROTTLED, retry_after=600.0)
        await asyncio.sleep(90)
        begun = scene.stats.paused_until
        sent = scene.requests(150, 640)
        await asyncio.sleep(500)
        await scene.poller.stop(1)
        return begun, sent, scene.requests(150, 640)

    begun, before, sent = run(play)
    assert begun
    assert (before, sent) == (0, 0)


@pytest.mark.parametrize("calls", [2, 7, 40])
@pytest.mark.parametrize("refused_before", [False, True])
def test_calls_that_were_all_refused_at_once_show_that_the_account_was(
    calls: int, *, refused_before: bool
) -> None:
    """Each is to wait for as long as the provider asks, and none is left to confirm it."""

    async def play() -> Any:
        scene = Scene(replace(SETTINGS, interval=1.0, max_interval=1.5, rate_limit=1000.0))
        scene.lives = {f"call-{number}": 1e9 for number in range(calls)}
        scene.watch(*scene.lives)
        if refused_before:
            await asyncio.sleep(60)
            scene.replies["call-0"] = Answer(Outcome.THROTTLED)
            await asyncio.sleep(10)
            scene.replies.clear()
        await asyncio.sleep(120)
        begun = asyncio.get_running_loop().time()
        scene.for_all = Answer(Outcome.THROTTLED, retry_after=900.0)
        await asyncio.sleep(120)
        await scene.poller.stop(1)
        return scene.stats.paused_until, scene.requests(begun)

    paused_until, sent = run(play)
    assert paused_until
    assert sent <= calls + 60


def test_one_sick_call_left_alone_does_not_pause_its_account_for_those_to_come() -> None:
    async def play() -> Any:
        scene = Scene()
        scene.replies["sick"] = AUTH
        scene.watch("sick")
        await asyncio.sleep(5 * 3600)
        assert scene.poller.paused is Outcome.AUTH
        began = asyncio.get_running_loop().time()
        scene.watch("healthy")
        counted = await scene.until_finished("healthy")
        await scene.poller.stop(1)
        return counted - began

    assert run(play) < 20


def test_old_calls_of_an_account_that_is_refused_for_long_expire_unasked() -> None:
    async def play() -> Any:
        scene = Scene(replace(SETTINGS, give_up=GiveUpPolicy(600.0, 7_200.0)))
        scene.for_all = AUTH
        names = [f"call-{number}" for number in range(500)]
        scene.watch(*names, state=CallState.QUEUED)
        await asyncio.sleep(3_600)
        scene.watch("young")
        await scene.until_finished(*names)
        await scene.poller.stop(1)
        return scene

    scene = run(play)
    assert "young" not in scene.finished
    assert {found.status for _, found in scene.finished.values()} == {Status.EXPIRED}
    assert 7_200 <= max(at for at, _ in scene.finished.values()) <= 7_200 + MAX_PAUSE * 1.1 + 300
    assert scene.requests() < 90


def test_calls_that_failed_with_their_account_are_polled_again_with_it() -> None:
    """They do not wait for their own back-off, which has grown meanwhile."""

    async def play() -> Any:
        scene = Scene()
        scene.lives = {f"call-{number}": 1_000.0 for number in range(3)}
        scene.watch(*scene.lives)
        await asyncio.sleep(60)
        scene.for_all = DOWN
        await asyncio.sleep(3_600)
        scene.for_all = None
        counted = await scene.until_finished(*scene.lives)
        await scene.poller.stop(1)
        return counted

    assert run(play) <= 3_660 + 300 * 1.1 + 5


def test_another_request_that_keeps_failing_says_nothing_about_the_account() -> None:
    async def play() -> Any:
        scene = Scene()
        scene.lives = {f"call-{number}": 600.0 for number in range(20)}
        scene.watch(*scene.lives)
        await asyncio.sleep(60)

        async def refused() -> Answer:
            return AUTH

        for _ in range(100):
            await scene.poller.request("place", refused, 0.0)
            await asyncio.sleep(5)
            assert scene.poller.paused is None
        counted = await scene.until_finished(*scene.lives)
        await scene.poller.stop(1)
        return counted

    assert run(play) < 600 + 300 * 1.1


def test_a_sick_call_does_not_show_the_credentials_as_refused() -> None:
    async def play() -> Any:
        scene = Scene()
        scene.replies["sick"] = AUTH
        scene.lives = {f"call-{number}": 9_000.0 for number in range(20)}
        scene.watch("sick", *scene.lives)
        shown = set()
        for _ in range(100):
            await asyncio.sleep(30)
            shown.add(scene.stats.authorized)
        await scene.poller.stop(1)
        return shown, scene.stats.polls.codes["101"]

    shown, failures = run(play)
    assert shown == {True}
    assert failures > 5


def test_what_is_logged_of_a_pause() -> None:
    async def play() -> Any:
        scene = Scene()
        scene.watch("a", "b", "c", state=CallState.QUEUED)
        scene.for_all = AUTH
        await asyncio.sleep(300)
        scene.for_all = QUEUED
        await scene.until(lambda: scene.poller.paused is None)
        await scene.poller.stop(1)
        return scene.stats.paused_until

    with capture_logs() as logs:
        assert run(play) == 0
    assert [line["event"] for line in logs] == ["account paused", "account resumed"]


def test_calls_that_failed_are_polled_again_with_new_credentials() -> None:
    async def play() -> Any:
        scene = Scene()
        scene.for_all = Answer(Outcome.THROTTLED, retry_after=900.0)
        names = [f"call-{number}" for number in range(3)]
        scene.watch(*names)
        await asyncio.sleep(60)
        scene.for_all = None
        scene.poller.retry()
        counted = await scene.until_finished(*names)
        await scene.poller.stop(1)
        return counted

    assert run(play) < 90


@pytest.mark.parametrize("lives", [0.0, 40.0], ids=["finished at once", "polled for a while"])
@pytest.mark.parametrize("kind", ["code_101", "http_429", "timeout", "http_503_retry_after"])
def test_sick_calls_that_keep_coming_do_not_hold_up_healthy_ones(kind: str, lives: float) -> None:
    """Two healthy calls and a sick one each second."""

    async def play() -> Any:
        scene = Scene()
        for number in range(600):
            scene.lives |= {f"healthy-{number}-{one}": lives for one in "ab"}
            scene.replies[f"sick-{number}"] = SICK[kind]
            scene.watch(f"healthy-{number}-a", f"sick-{number}", f"healthy-{number}-b")
            await asyncio.sleep(1)
        delays = scene.delays("healthy", 60)
        await scene.poller.stop(1)
        return delays

    delays = run(play)
    assert len(delays) >= 950
    assert delays[int(0.95 * len(delays))] <= 20


@pytest.mark.parametrize("calls", [1, 3, 200])
@pytest.mark.parametrize("kind", ["code_101", "http_429", "timeout"])
def test_outages_that_come_again_cost_few_requests_each(kind: str, calls: int) -> None:
    async def play() -> Any:
        scene = Scene()
        scene.lives = {f"call-{number}": 1e9 for number in range(calls)}
        scene.watch(*scene.lives)
        loop, sent = asyncio.get_running_loop(), []
        await asyncio.sleep(150)
        for _ in range(4):
            begin, scene.for_all = loop.time(), SICK[kind]
            await asyncio.sleep(600)
            sent.append(scene.requests(begin, begin + 600))
            scene.for_all = None
            await asyncio.sleep(150)
        await scene.poller.stop(1)
        return sent

    assert max(run(play)) <= 20


def test_an_id_that_is_throttled_now_and_then_does_not_slow_its_account() -> None:
    async def play() -> Any:
        scene = Scene(replace(SETTINGS, interval=5.0, max_interval=5.0))
        scene.lives = {f"call-{number}": 1e9 for number in range(90)}
        scene.watch(*scene.lives)
        for number in range(600):
            scene.replies = {"call-0": SICK["http_429"]} if number % 2 else {}
            await asyncio.sleep(1)
        sent = scene.requests(300, 600)
        await scene.poller.stop(1)
        return sent

    assert run(play) >= 0.9 * 300 * 90 / 5


def test_removed_calls_leave_nothing_behind_while_their_account_is_paused() -> None:
    async def play() -> Any:
        scene = Scene()
        scene.for_all = AUTH
        scene.watch("first", "second")
        await asyncio.sleep(3_600)
        for number in range(20_000):
            scene.watch(f"removed-{number}")
            scene.poller.remove(len(scene.placed))
        calls = [it for it in gc.get_objects() if isinstance(it, WatchedCall)]
        held = sum(call.reference_id.startswith("removed") for call in calls)
        await scene.poller.stop(1)
        return held

    assert run(play) <= 5_000


def test_refused_keys_are_shown_within_seconds_where_one_call_is_left_to_ask() -> None:
    """It was answered just now, and no other call can confirm what it says."""

    async def play() -> Any:
        scene = Scene()
        scene.lives = {"only": 1e9}
        scene.watch("only")
        await asyncio.sleep(40)
        scene.for_all = AUTH
        sent = scene.requests()
        await scene.until(lambda: scene.requests() > sent)
        await asyncio.sleep(5)
        await scene.poller.stop(1)
        return scene.stats.authorized, scene.requests() - sent

    assert run(play) == (False, 2)
