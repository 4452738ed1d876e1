"""An account with more calls that are due than its rate allows, in virtual time."""

from __future__ import annotations

import asyncio
import random

from exporter.calls import CallState
from tests.polling.scene import NOT_FOUND, Scene, now, ringing

PASSWORDS, CAMPAIGN = 1, 2


async def passwords(scene: Scene, seconds: float, seed: int = 5) -> None:
    """Place two calls a second."""
    chance = random.Random(seed)
    for number in range(int(2 * seconds)):
        scene.lives[f"password-{number}"] = ringing(chance)
        scene.watch(f"password-{number}", label_set=PASSWORDS)
        await asyncio.sleep(0.5)


def percentile(delays: list[float], share: float) -> float:
    return delays[int(share * len(delays))]


async def test_a_campaign_does_not_delay_passwords(scene: Scene) -> None:
    scene.configure(adaptive=True)
    chance = random.Random(7)
    placing = asyncio.create_task(passwords(scene, 1_500))
    await asyncio.sleep(300)
    campaign = {f"campaign-{number}": ringing(chance) for number in range(10_000)}
    scene.lives |= campaign
    scene.watch(*campaign, label_set=CAMPAIGN)
    # First in, first out took 556 s for the campaign, and the passwords 440 s (p95).
    assert await scene.until_finished(*campaign) - 300 <= 1.4 * 556
    await placing
    await scene.until_finished(*scene.lives)
    delays = scene.delays("password", 300)
    assert percentile(delays, 0.5) <= 9
    assert percentile(delays, 0.95) <= 20


async def test_unknown_ids_do_not_delay_calls_with_the_same_labels(scene: Scene) -> None:
    scene.configure(adaptive=True)
    placing = asyncio.create_task(passwords(scene, 1_200))
    for number in range(6_000):
        scene.replies[f"unknown-{number}"] = NOT_FOUND
        scene.watch(f"unknown-{number}", label_set=PASSWORDS)
        await asyncio.sleep(0.2)
    await placing
    await scene.until_finished(*scene.lives)
    delays = scene.delays("password")
    assert percentile(delays, 0.5) <= 9
    assert percentile(delays, 0.95) <= 20
    # They do end, after `not_found_grace`.
    assert sum(name.startswith("unknown") for name in scene.finished) > 1_000


async def test_a_hinted_call_is_polled_next(scene: Scene) -> None:
    scene.lives = {f"file-{number}": 1e9 for number in range(5_000)} | {"hinted": 1e9}
    for label_set, name in ((1, "file-4999"), (2, "hinted")):
        scene.watch(*(n for n in scene.lives if n != "hinted"), label_set=1)
        scene.watch("hinted", label_set=label_set)
        await asyncio.sleep(10)
        scene.lives[name] = 0.0
        began = now()
        scene.poller.poll_now(list(scene.placed).index(name) + 1)
        assert await scene.until_finished(name) - began <= 2


async def test_labels_share_the_turns_evenly_and_idle_ones_come_next(scene: Scene) -> None:
    scene.configure(interval=1.0, max_interval=1.0)
    for label_set, calls in enumerate((300, 100, 100, 1)):
        names = [f"set-{label_set}-{number}" for number in range(calls)]
        scene.lives |= dict.fromkeys(names, 1e9)
        scene.watch(*names, label_set=label_set)
    await asyncio.sleep(300)
    *busy, seldom = (scene.requests(100, 300, f"set-{label_set}-") for label_set in range(4))
    assert sum(busy) + seldom >= 0.95 * 200 * 20
    assert max(busy) <= 1.05 * min(busy)
    assert seldom >= 150


async def test_no_call_waits_for_ever_behind_those_that_come_first(scene: Scene) -> None:
    """New calls take more turns than there are, all with the same labels: it waits as they do."""
    scene.configure(interval=5.0, max_interval=5.0)
    scene.lives = {"old": 1e9}
    scene.watch("old", state=CallState.QUEUED)
    await asyncio.sleep(60)  # it was polled often
    for number in range(12_000):
        scene.lives[f"new-{number}"] = 0.0
        scene.watch(f"new-{number}")
        await asyncio.sleep(0.04)
    assert scene.requests(60, prefix="old") >= 10


async def test_what_lags_is_shown(scene: Scene) -> None:
    scene.lives = {f"call-{number}": 1e9 for number in range(1_000)}
    scene.watch(*scene.lives, label_set=7)
    await asyncio.sleep(20)
    backlog = scene.poller.backlog()
    assert backlog.calls > 100
    assert backlog.lag > 5
    assert backlog.label_set == 7
    assert scene.stats.lags.sum > 0
