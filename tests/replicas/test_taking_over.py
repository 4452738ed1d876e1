"""Exporters that come, go and are cut off: who polls what."""

from __future__ import annotations

import asyncio

import pytest

from tests.replicas.scene import HEARTBEAT, Scene, names
from tests.samples import value
from tests.waiting import deadline, until


async def test_who_joins_gets_a_share_and_who_leaves_hands_it_over_at_once(scene: Scene) -> None:
    calls = names(60)
    first = await scene.exporter("first", calls)
    second = await scene.exporter("second", calls)
    third = await scene.exporter("third", calls)
    await scene.settled(calls, first, second, third)
    assert first.evictions == second.evictions == third.evictions == 0
    for exporter in (first, second, third):
        assert value(exporter.service.metrics, "esms_replicas") == 3
    handed, number = third.holds, third.replica._id
    await third.stop()
    # Others do not have to wait until it was silent for long.
    assert await scene.rows(f"SELECT 1 FROM replicas WHERE id = {number} AND ended_at > 0")
    stopped = scene.clock()
    await until(lambda: all(scene.provider.by(name, stopped) for name in handed))
    await scene.settled(calls, first, second)


async def test_who_waits_for_answers_at_its_end_has_handed_everything_over(scene: Scene) -> None:
    calls = names(40)
    first = await scene.exporter("first", calls)
    second = await scene.exporter("second", calls)
    await scene.settled(calls, first, second)
    await second.configure(shutdown_timeout=3600.0)
    answered = scene.provider.answered["second"] = asyncio.Event()
    since = scene.clock()
    await until(lambda: any(scene.provider.by(name, since)["second"] for name in calls))
    handed = second.holds
    stopping = asyncio.create_task(second.stop())
    stopped = scene.clock()
    await until(lambda: all(scene.provider.by(name, stopped)["first"] for name in handed))
    assert not stopping.done()
    # Answers that come yet count, once.
    scene.finish(*calls)
    answered.set()
    async with deadline():
        await stopping
    await until(lambda: first.counted() == len(calls))
    assert await scene.rows("SELECT sum(value) FROM totals WHERE total = 'calls'") == [(40,)]


@pytest.mark.parametrize("how", ["stall", "refuse"])
async def test_who_is_cut_off_stops_before_others_take_over(scene: Scene, how: str) -> None:
    calls = names(40)
    first = await scene.exporter("first", calls)
    second = await scene.exporter("second", calls)
    await scene.settled(calls, first, second)
    orphans = second.holds
    getattr(second.proxy, how)()
    cut = scene.clock()
    await until(lambda: all(scene.provider.by(name, cut)["first"] for name in orphans))
    taken = {
        name: min(
            asked.at
            for asked in scene.provider.asked
            if asked.name == name and asked.by == "first" and asked.at > cut
        )
        for name in orphans
    }
    last = max(asked.at for asked in scene.provider.asked if asked.by == "second")
    assert last < min(taken.values())
    second.proxy.heal()
    await until(lambda: second.evictions >= 1)
    await scene.settled(calls, first, second)
    await until(lambda: not second.service.not_ready())


@pytest.mark.parametrize("how", ["stall", "refuse"])
async def test_where_nobody_reaches_the_ledger_nobody_is_taken_for_dead(
    scene: Scene, how: str
) -> None:
    calls = names(40)
    exporters = [await scene.exporter(name, calls) for name in ("first", "second", "third")]
    await scene.settled(calls, *exporters)
    await asyncio.sleep(HEARTBEAT)  # long enough for each to take others for dead
    for exporter in exporters:
        getattr(exporter.proxy, how)()
    await asyncio.sleep(HEARTBEAT)
    away = scene.clock()
    await asyncio.sleep(1.5 * HEARTBEAT)
    assert not [asked for asked in scene.provider.asked if asked.at > away]
    for exporter in exporters:
        exporter.proxy.heal()
    await scene.settled(calls, *exporters)
    assert [exporter.evictions for exporter in exporters] == [0, 0, 0]
    await until(lambda: not any(exporter.service.not_ready() for exporter in exporters))
