"""Exporters that come, go and are cut off: who polls which accounts."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress

import pytest

from exporter.config import CallConfig
from exporter.errors import LedgerError
from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.ids import reference_id
from tests.replicas.scene import HEARTBEAT, Scene, names, spread
from tests.samples import value
from tests.waiting import deadline, until

ACCOUNTS = tuple(f"a{number}" for number in range(6))
CALLS = spread(names(24), ACCOUNTS)


async def test_who_joins_gets_a_share_and_who_leaves_hands_it_over_at_once(scene: Scene) -> None:
    first = await scene.exporter("first", CALLS, ACCOUNTS)
    await scene.settled(CALLS, first)
    second = await scene.exporter("second", CALLS, ACCOUNTS)
    third = await scene.exporter("third", CALLS, ACCOUNTS)
    await scene.settled(CALLS, first, second, third)
    for exporter in (first, second, third):
        assert value(exporter.service.metrics, "esms_replicas") == 3
        assert len(exporter.service.peers or ()) == 2
    await until(lambda: third.service.standby.keys() == set(ACCOUNTS) - third.accounts)
    assert all(third.service.standby.values())
    handed, holder = third.holds, third.service.ledger.store.exporter
    await third.stop()
    # Others do not have to wait until it was silent for long.
    assert not await scene.rows(f"SELECT 1 FROM leases WHERE holder = '{holder}'")
    stopped = scene.clock()
    await until(lambda: all(scene.provider.by(name, stopped) for name in handed))
    await scene.settled(CALLS, first, second)


async def test_who_waits_for_answers_at_its_end_has_handed_everything_over(scene: Scene) -> None:
    first = await scene.exporter("first", CALLS, ACCOUNTS)
    second = await scene.exporter("second", CALLS, ACCOUNTS)
    await scene.settled(CALLS, first, second)
    polling = second.config.polling.model_copy(update={"timeout": 3600.0})
    await second.configure(shutdown_timeout=3600.0, polling=polling)
    answered = scene.provider.answered["second"] = asyncio.Event()
    since = scene.clock()
    await until(lambda: any(scene.provider.by(name, since)["second"] for name in CALLS))
    handed = second.holds
    stopping = asyncio.create_task(second.stop())
    stopped = scene.clock()
    await until(lambda: all(scene.provider.by(name, stopped)["first"] for name in handed))
    assert not stopping.done()
    # Answers that come yet count, once.
    scene.finish(*CALLS)
    answered.set()
    async with deadline():
        await stopping
    await until(lambda: first.counted() == len(CALLS))
    assert await scene.rows("SELECT sum(value) FROM totals WHERE total = 'calls'") == [
        (len(CALLS),)
    ]


@pytest.mark.parametrize("how", ["stall", "refuse"])
async def test_who_is_cut_off_stops_before_others_take_over(scene: Scene, how: str) -> None:
    first = await scene.exporter("first", CALLS, ACCOUNTS)
    second = await scene.exporter("second", CALLS, ACCOUNTS)
    await scene.settled(CALLS, first, second)
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
    assert second.shown() == {}
    second.proxy.heal()
    assert second.evictions >= 1
    await scene.settled(CALLS, first, second)
    await until(lambda: not second.service.not_ready())


@pytest.mark.parametrize("how", ["stall", "refuse"])
async def test_where_no_exporter_reaches_the_ledger_all_stop_and_go_on(
    scene: Scene, how: str
) -> None:
    exporters = [
        await scene.exporter(name, CALLS, ACCOUNTS) for name in ("first", "second", "third")
    ]
    await scene.settled(CALLS, *exporters)
    for exporter in exporters:
        getattr(exporter.proxy, how)()
    await asyncio.sleep(HEARTBEAT)
    away = scene.clock()
    await asyncio.sleep(1.5 * HEARTBEAT)
    assert not [asked for asked in scene.provider.asked if asked.at > away]
    for exporter in exporters:
        exporter.proxy.heal()
    await scene.settled(CALLS, *exporters)
    await until(lambda: not any(exporter.service.not_ready() for exporter in exporters))


async def test_who_cannot_reach_the_provider_leaves_the_account_to_another(scene: Scene) -> None:
    accounts = ("main", "other")
    calls = spread(names(12), accounts)
    first = await scene.exporter("first", calls, accounts)
    second = await scene.exporter("second", calls, accounts)
    await scene.settled(calls, first, second)
    cut, other = (first, second) if "main" in first.accounts else (second, first)
    scene.provider.failing[cut.name] = Answer(Outcome.CONNECTION, message="no way there")
    await until(lambda: other.accounts == set(accounts))
    assert not cut.accounts
    scene.finish(*calls)
    await until(lambda: other.counted() == len(calls))
    # Nobody else is left: it keeps what it cannot reach.
    await other.stop()
    await until(lambda: cut.accounts == set(accounts))
    del scene.provider.failing[cut.name]
    await until(lambda: cut.counted() == len(calls))


async def test_an_account_that_is_taken_twice_is_started_once(scene: Scene) -> None:
    first = await scene.exporter("first", {"call": "main"})
    await scene.settled(["call"], first)
    query = "SELECT epoch FROM leases WHERE holder IS NOT NULL"
    watch = first.config.watch.model_copy(
        update={"calls": (*first.config.watch.calls, CallConfig(reference_id("new"), "main"))}
    )
    async with scene.locked("LOCK TABLE call_sources IN ACCESS EXCLUSIVE MODE"):
        # It is taken while the configuration changes, so it is not started yet.
        changing = asyncio.create_task(first.configure(watch=watch))
        await scene.waits("%call_sources%")
        for _ in range(2):
            ((epoch,),) = await scene.rows(query)
            await scene.rows("UPDATE leases SET epoch = epoch + 1")
            await scene.finds(query, [(epoch + 2,)])
            assert not first.accounts
    with suppress(LedgerError):  # where the lock was held for too long: it is tried again
        await changing
    await scene.settled(["call", "new"], first)
    await until(lambda: scene.provider.clients["first"] == 1)


async def test_an_account_that_comes_back_while_its_lease_is_taken_is_polled(scene: Scene) -> None:
    accounts = ("main", "other")
    first = await scene.exporter("first", {"call": "other"}, accounts)
    await scene.settled(["call"], first)
    of_other = "WHERE account_id = (SELECT id FROM accounts WHERE name = 'other')"
    await scene.rows(
        "UPDATE leases SET holder = 'another', expires_at = expires_at + 3600 " + of_other
    )
    await until(lambda: first.accounts == {"main"})
    await scene.rows(
        "INSERT INTO notices (account_id, notice) SELECT id, 'totals' FROM accounts "
        "WHERE name = 'other'"
    )
    config = first.config
    calls = config.watch.model_copy(update={"calls": ()})
    async with AsyncExitStack() as ends:
        async with scene.locked(f"SELECT 1 FROM notices {of_other} FOR UPDATE"):
            await scene.rows("UPDATE leases SET holder = NULL " + of_other)
            await scene.waits("DELETE FROM notices%")
            await first.configure(accounts=config.accounts[:1], watch=calls)
            # The next look at the leases comes after the account is back.
            await ends.enter_async_context(
                scene.locked("LOCK TABLE exporters IN ACCESS EXCLUSIVE MODE")
            )
        await scene.waits("%exporters%")
        await first.configure(accounts=config.accounts)
    await first.push("pushed", account="other")
    await until(lambda: first.holds == {"pushed"})
