"""What was done in the ledger, though the exporter was not told so."""

from __future__ import annotations

import asyncio

import pytest

from exporter.errors import LedgerError
from tests.replicas.scene import Scene, names
from tests.waiting import until


async def test_what_is_written_counts_though_the_answer_is_lost(scene: Scene) -> None:
    first = await scene.exporter("first")
    await until(lambda: first.accounts == {"main"})
    asked = scene.provider.by

    # Pushed: polled all the same.
    first.proxy.lose_commit_of("INSERT INTO calls")
    with pytest.raises(LedgerError, match="the connection broke"):
        await first.push("pushed", "deleted")
    await until(lambda: bool(asked("pushed") and asked("deleted")))
    assert first.holds == {"pushed", "deleted"}

    # Finished: counted once, and shown.
    await first.push("finished")
    first.proxy.lose_commit_of("INSERT INTO totals")
    scene.finish("finished")
    await until(lambda: first.counted() == 1)
    await until(lambda: first.holds == {"pushed", "deleted"})

    # Deleted: that it was so is found out by trying again, and it is polled no more.
    row = await scene.row("deleted")
    first.proxy.lose_commit_of("DELETE FROM call_sources")
    with pytest.raises(LedgerError, match="the connection broke"):
        await first.service.calls.delete(row)
    assert not await first.service.calls.delete(row)
    assert first.holds == {"pushed"}
    assert first.proxy.lost == 3
    assert first.counted() == 1


async def test_leases_and_claims_whose_answer_is_lost(scene: Scene) -> None:
    calls = dict.fromkeys(names(40), "main")
    first = await scene.exporter("first", calls)
    await scene.settled(calls, first)
    second = await scene.exporter("second", calls)
    second.proxy.lose_commit_of("SKIP LOCKED", found="call-")
    await first.stop()
    left = scene.clock()
    await until(lambda: all(scene.provider.by(name, left)["second"] for name in calls))
    assert second.proxy.lost == 1
    third = await scene.exporter("third", calls)
    third.proxy.lose_commit_of("epoch = l.epoch + 1")
    await second.stop()
    left = scene.clock()
    await until(lambda: all(scene.provider.by(name, left)["third"] for name in calls))
    assert third.proxy.lost == 1
    third.proxy.lose_commit_of("SET expires_at")
    await until(lambda: third.proxy.lost == 2)
    await scene.settled(calls, third)


async def test_calls_whose_commit_lasts_longer_than_the_connection(scene: Scene) -> None:
    first = await scene.exporter("first")
    await until(lambda: first.accounts == {"main"})
    await scene.rows(
        "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS "
        "'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END'"
    )
    await scene.rows(
        "CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON calls "
        "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hold()"
    )
    async with scene.locked("SELECT pg_advisory_xact_lock(1)"):
        pushing = asyncio.create_task(first.push("late"))
        await scene.waits("COMMIT%")
        first.proxy.refuse()
        first.proxy.heal()
        with pytest.raises(LedgerError, match="the connection broke"):
            await pushing
        await scene.waits("%accounts%FOR UPDATE%")
    await until(lambda: first.holds == {"late"})
