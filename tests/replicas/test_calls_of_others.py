"""What is asked of an exporter about calls that another one polls."""

from __future__ import annotations

import asyncio

import pytest_asyncio

from exporter.calls import CallbackOutcome
from exporter.config import CallbackConfig, CallConfig, WatchConfig
from exporter.ids import reference_id
from exporter.ledger.history import call_history
from exporter.sources.callback import CallbackSource
from exporter.sources.source import SourceContext
from exporter.tracker import CallTracker
from exporter.web.api import call_details
from exporter.web.schemas import HistoryEvent
from tests.replicas.scene import Exporter, Scene, names
from tests.waiting import until

# Nobody asks for a call a second time but for a reason.
INTERVAL = 60.0

Pair = tuple[Exporter, Exporter]


@pytest_asyncio.fixture
async def pair(scene: Scene) -> Pair:
    """Two exporters, of which the first polls the only account."""
    first = await scene.exporter("first", {"named": "main"}, interval=INTERVAL)
    await until(lambda: first.accounts == {"main"})
    await first.push("a", "b", "c")
    second = await scene.exporter("second", {"named": "main"}, interval=INTERVAL)
    await until(lambda: all(scene.provider.by(name) for name in ("a", "b", "c", "named")))
    return first, second


async def test_what_is_watched_no_more_is_polled_no_more(scene: Scene, pair: Pair) -> None:
    first, second = pair
    assert first.holds == {"a", "b", "c", "named"}
    assert await second.service.calls.delete(await scene.row("a"))
    await until(lambda: first.holds == {"b", "c", "named"})
    # A configuration is one for all of them.
    await second.configure(watch=second.config.watch.model_copy(update={"calls": ()}))
    await until(lambda: first.holds == {"b", "c"})
    assert not second.holds
    assert first.counted() == 0


async def take(
    calls: CallTracker, config: CallbackConfig, account: str, fields: dict[str, str]
) -> CallbackOutcome:
    source = CallbackSource(calls)
    await source.configure(WatchConfig(callback=config), SourceContext((), (), 0))
    return await source.accept(account, fields)


async def history(exporter: Exporter, name: str) -> list[HistoryEvent]:
    service = exporter.service
    found = await service.calls.find("main", reference_id(name))
    assert found is not None
    events = await service.ledger.execute(call_history, found.id)
    return call_details(service, found, events).history


async def test_a_callback_reaches_the_one_that_polls_the_call(scene: Scene, pair: Pair) -> None:
    first, second = pair
    calls = second.service.calls
    scene.finish("a")
    verify, accept = CallbackConfig(trust="verify"), CallbackConfig(trust="accept")
    assert await take(calls, verify, "main", {"ReferenceId": "A"}) is CallbackOutcome.HINT
    await until(lambda: first.counted() == 1)
    assert scene.provider.by("a") == {"first": 2}
    ended = {
        "ReferenceId": "b",
        "SendStatus": "5",
        "SentResult": "1",
        "CallStatus": "ANSWERED",
        "CallDuration": "7",
        "Price": "350",
    }
    # To both at once, as a provider does that has lost the first answer.
    outcomes = await asyncio.gather(
        take(calls, accept, "main", ended), take(first.service.calls, accept, "main", ended)
    )
    assert sorted(outcomes) == [CallbackOutcome.ACCEPTED, CallbackOutcome.REPEATED]
    await until(lambda: first.holds == {"c", "named"})
    assert await take(calls, accept, "main", ended) is CallbackOutcome.REPEATED
    await until(lambda: first.counted() == 2)
    assert first.shown()['esms_call_price_vnd_total{account="main",campaign=""}'] == 350
    assert scene.provider.by("b") == {"first": 1}
    # What ends nothing is asked about by whoever polls the call.
    assert (
        await take(calls, accept, "main", {"ReferenceId": "c", "SendStatus": "2"})
        is CallbackOutcome.HINT
    )
    await until(lambda: scene.provider.by("c") == {"first": 2})
    assert second.shown() == {}
    # Each shows what the others have received.
    for name, expected in (("a", ["hint"]), ("b", ["accepted", "repeated", "repeated"])):
        for exporter in pair:
            told = [one.subject for one in await history(exporter, name) if one.event == "callback"]
            assert sorted(told) == expected


async def test_what_is_pushed_anywhere_is_polled_by_the_holder(scene: Scene, pair: Pair) -> None:
    first, second = pair
    for number in range(5):
        pushed = names(20, f"pushed-{number}")
        # In another order each: they must not wait for each other.
        await asyncio.gather(first.push(*pushed), second.push(*reversed(pushed)))
        await until(lambda pushed=pushed: first.holds.issuperset(pushed))  # type: ignore[misc]
        await second.push(*pushed)
    assert len(first.holds) == 104
    assert not second.holds
    ((known,),) = await scene.rows("SELECT count(*) FROM calls")
    assert known == 104


async def test_an_account_that_only_some_poll(scene: Scene) -> None:
    both = ("main", "b")
    first = await scene.exporter("first", accounts=both)
    second = await scene.exporter("second", accounts=both)
    calls = names(30)
    await second.push(*calls[:15], account="b")
    await second.push(*calls[15:])
    await scene.settled(calls, first, second)
    # It leaves one of them, which hands it over.
    await second.configure(accounts=scene.account_configs("second", "main"))
    await until(lambda: first.holds >= set(calls[:15]))
    # It returns, and is polled by one of them.
    await second.configure(accounts=scene.account_configs("second", *both))
    await scene.settled(calls, first, second)
    # Nobody has it: its calls wait, however long, and so do counts.
    for exporter in (first, second):
        await exporter.configure(accounts=scene.account_configs(exporter.name, "main"))
    await until(lambda: first.holds | second.holds == set(calls[15:]))
    scene.finish("call-0")
    await second.configure(accounts=scene.account_configs("second", *both))
    await until(lambda: second.counted() == 1)
    assert first.counted() == 0
    await first.configure(accounts=scene.account_configs("first", *both))
    await scene.settled(calls[1:], first, second)
    assert first.counted() + second.counted() == 1


async def test_calls_of_a_configuration_that_grows_on_one_first(scene: Scene, pair: Pair) -> None:
    first, second = pair
    both = (CallConfig(reference_id("named"), "main"), CallConfig(reference_id("new"), "main"))
    for exporter in (second, first):
        await exporter.configure(watch=exporter.config.watch.model_copy(update={"calls": both}))
    await until(lambda: first.holds == {"a", "b", "c", "named", "new"})
    assert not second.holds
