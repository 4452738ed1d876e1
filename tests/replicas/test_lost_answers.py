"""What was done in the ledger, though the exporter was not told so."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from exporter.errors import LedgerError
from tests.replicas.scene import HEARTBEAT, Scene, names
from tests.waiting import until


async def test_what_is_written_counts_though_the_answer_is_lost(scene: Scene) -> None:
    first = await scene.exporter("first")
    second = await scene.exporter("second")
    asked = scene.provider.by

    # Pushed: polled by one of them all the same.
    first.proxy.lose_commit_of("INSERT INTO calls")
    with pytest.raises(LedgerError, match="the connection broke"):
        await first.push("pushed", "deleted")
    await until(lambda: bool(asked("pushed") and asked("deleted")))
    assert first.holds | second.holds == {"pushed", "deleted"}
    assert not first.holds & second.holds

    # Finished: counted once.
    await first.push("finished")
    first.proxy.lose_commit_of("INSERT INTO totals")
    scene.finish("finished")
    await until(lambda: first.counted() == second.counted() == 1)
    await until(lambda: first.holds == {"pushed", "deleted"})

    # Deleted: that it was so is found out by trying again, and it is polled no more.
    row = await scene.row("deleted")
    first.proxy.lose_commit_of("DELETE FROM call_sources")
    with pytest.raises(LedgerError, match="the connection broke"):
        await first.service.calls.delete(row)
    assert not await first.service.calls.delete(row)
    assert first.holds == {"pushed"}
    assert first.proxy.lost == 3
    assert not second.holds

    # A turn that was given: asked for again.
    first.proxy.lose_commit_of("next_slot =")
    await until(lambda: first.proxy.lost == 4)
    since = scene.clock() + 0.1
    await until(lambda: asked("pushed", since).total() > 2)
    assert first.counted() == second.counted() == 1
    assert first.evictions == 0


async def test_calls_that_move_are_polled_by_one_though_the_answer_is_lost(scene: Scene) -> None:
    calls = names(40)
    first = await scene.exporter("first", calls)
    first.proxy.lose_commit_of("UPDATE calls SET replica_id = NULL")
    second = await scene.exporter("second", calls)
    await until(lambda: first.proxy.lost == 1)
    await scene.settled(calls, first, second)
    second.proxy.lose_commit_of("SKIP LOCKED", found="call-")
    await first.stop()
    left = scene.clock()
    await until(lambda: all(scene.provider.by(name, left)["second"] for name in calls))
    assert second.proxy.lost == 1
    await scene.settled(calls, second)


async def test_what_came_in_while_others_took_over_is_polled_by_one(scene: Scene) -> None:
    first = await scene.exporter("first", interval=0.1)
    second = await scene.exporter("second", interval=0.1)
    for number in range(3):
        # As another exporter does.
        await scene.rows(f"UPDATE replicas SET ended_at = 1 WHERE id = {second.replica._id}")
        pushed = names(15, f"round-{number}")
        for name in pushed:
            await second.push(name)
            await asyncio.sleep(HEARTBEAT / 30)
        await until(partial(lambda times: second.evictions >= times, number + 1))
    await scene.settled([name for n in range(3) for name in names(15, f"round-{n}")], first, second)
