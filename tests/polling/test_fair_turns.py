"""An account with more calls that are due than its rate allows, in virtual time."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

from exporter.calls import CallState
from tests.polling.scene import NOT_FOUND, SETTINGS, Scene, run

PASSWORDS, CAMPAIGN = 1, 2


def lives(chance: random.Random) -> float:
    return chance.uniform(2, 25) + min(120.0, chance.lognormvariate(3.0, 0.6))


async def passwords(scene: Scene, seconds: float, seed: int = 5) -> None:
    """Place two calls a second."""
    chance = random.Random(seed)
    for number in range(int(2 * seconds)):
        scene.lives[f"password-{number}"] = lives(chance)
        scene.watch(f"password-{number}", label_set=PASSWORDS)
        await asyncio.sleep(0.5)


def percentile(delays: list[float], share: float) -> float:
    return delays[int(share * len(delays))]


def test_a_campaign_does_not_delay_passwords() -> None:
    async def play() -> Any:
        scene = Scene(replace(SETTINGS, adaptive=True))
        chance = random.Random(7)
        placing = asyncio.create_task(passwords(scene, 1_500))
        await asyncio.sleep(300)
        campaign = {f"campaign-{number}": lives(chance) for number in range(10_000)}
        scene.lives |= campaign
        scene.watch(*campaign, label_set=CAMPAIGN)
        done = await scene.until_finished(*campaign) - 300
        await placing
        await scene.until_finished(*scene.lives)
        await scene.poller.stop(1)
        return scene.delays("password", 300), done

    delays, done = run(play)
    assert percentile(delays, 0.5) <= 9
    assert percentile(delays, 0.95) <= 20
    # First in, first out took 556 s for the campaign, and the passwords 440 s (p95).
    assert done <= 1.4 * 556


def test_unknown_ids_do_not_delay_calls_with_the_same_labels() -> None:
    async def play() -> Any:
        scene = Scene(replace(SETTINGS, adaptive=True))
        placing = asyncio.create_task(passwords(scene, 1_200))
        for number in range(6_000):
            scene.replies[f"unknown-{number}"] = NOT_FOUND
            scene.watch(f"unknown-{number}", label_set=PASSWORDS)
            await asyncio.sleep(0.2)
        await placing
        await scene.until_finished(*scene.lives)
        unknown = [name for name in scene.finished if name.startswith("unknown")]
        await scene.poller.stop(1)
        return scene.delays("password"), len(unknown)

    delays, unknown = run(play)
    assert percentile(delays, 0.5) <= 9
    assert percentile(delays, 0.95) <= 20
    assert unknown > 1_000  # they do end, after `not_found_grace`


def test_a_hinted_call_is_polled_next() -> None:
    async def play() -> Any:
        scene = Scene()
        scene.lives = {f"file-{number}": 1e9 for number in range(5_000)} | {"hinted": 1e9}
        for label_set, name in ((1, "file-4999"), (2, "hinted")):
            scene.watch(*(n for n in scene.lives if n != "hinted"), label_set=1)
            scene.watch("hinted", label_set=label_set)
            await asyncio.sleep(10)
            scene.lives[name] = 0.0
            row = list(scene.placed).index(name) + 1
            now = asyncio.get_running_loop().time()
            scene.poller.poll_now(row)
            assert await scene.until_finished(name) - now <= 2
        await scene.poller.stop(1)

    run(play)


def test_labels_share_the_turns_evenly_and_idle_ones_come_next() -> None:
    async def play() -> Any:
        scene = Scene(replace(SETTINGS, interval=1.0, max_interval=1.0))
        for label_set, calls in enumerate((300, 100, 100, 1)):
            names = [f"set-{label_set}-{number}" for number in range(calls)]
            scene.lives |= dict.fromkeys(names, 1e9)
            scene.watch(*names, label_set=label_set)
        await asyncio.sleep(300)
        await scene.poller.stop(1)
        return [scene.requests(100, 300, f"set-{label_set}-") for label_set in range(4)]

    *busy, seldom = run(play)
    assert sum(busy) + seldom >= 0.95 * 200 * 20
    assert max(busy) <= 1.05 * min(busy)
    assert seldom >= 150


def test_no_call_waits_for_ever_behind_those_that_come_first() -> None:
    """New calls take more turns than there are, all with the same labels: it waits as they do."""

    async def play() -> Any:
        scene = Scene(replace(SETTINGS, interval=5.0, max_interval=5.0))
        scene.lives = {"old": 1e9}
        scene.watch("old", state=CallState.QUEUED)
        await asyncio.sleep(60)  # it was polled often
        for number in range(12_000):
            scene.lives[f"new-{number}"] = 0.0
            scene.watch(f"new-{number}")
            await asyncio.sleep(0.04)
        await scene.poller.stop(1)
        return scene.requests(60, prefix="old")

    assert run(play) >= 10


def test_what_lags_is_shown() -> None:
    async def play() -> Any:
        scene = Scene()
        scene.lives = {f"call-{number}": 1e9 for number in range(1_000)}
        scene.watch(*scene.lives, label_set=7)
        await asyncio.sleep(20)
        backlog = scene.poller.backlog()
        await scene.poller.stop(1)
        return backlog, scene.stats.lags

    backlog, lag = run(play)
    assert backlog.calls > 100
    assert backlog.lag > 5
    assert backlog.label_set == 7
    assert lag.sum > 0
