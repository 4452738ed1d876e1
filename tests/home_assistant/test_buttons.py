"""Buttons: a press acts once, even if a broker repeats, delays or retains it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from exporter.app import App
from exporter.canaries.canaries import Canaries
from exporter.config import HomeAssistantConfig
from exporter.home_assistant.entities import topic_level
from exporter.simulator import Account, AccountState, Plan, Simulator
from tests.brokers import Listener, Mosquitto, listening
from tests.canaries.scene import Placed, by_hand
from tests.notify.bench import ACCOUNTS, Bench
from tests.waiting import until

CANARY = by_hand("hot.line", 3)
KEY = f"canary_{topic_level(CANARY.name)}"
PLACE = f"esms-exporter/main/place/{topic_level(CANARY.name)}"
RELOAD = "esms-exporter/reload"
CONFIG = "homeassistant/device/esms-exporter/main/config"
STATE = "esms-exporter/main/state"


@pytest_asyncio.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(accounts=ACCOUNTS, draw=lambda _: Plan()) as it:
        yield it


@pytest.fixture
def placed(simulator: Simulator) -> Placed:
    return Placed(simulator)


@pytest_asyncio.fixture
async def bench(simulator: Simulator, broker: Mosquitto, tmp_path: Path) -> AsyncIterator[Bench]:
    config = HomeAssistantConfig(url=broker.url)
    async with Bench(simulator, tmp_path, home_assistant=config, canaries=(CANARY,)) as bench:
        yield bench


class Presses:
    """Times of presses, which differ."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> str:
        self._last = max(self._last + 1, int(time.time()))
        return str(self._last)


async def shown(listener: Listener) -> None:
    """Wait until the canary has its button."""
    await until(lambda: f"place_{KEY}" in (listener.json(CONFIG) or {}).get("components", {}))


async def test_a_canary_call_is_placed_once(
    bench: Bench, placed: Placed, listener: Listener
) -> None:
    presses = Presses()
    await shown(listener)
    assert listener.json(CONFIG)["components"][f"place_{KEY}"]["command_topic"] == PLACE
    await until(lambda: listener.json(STATE).get(KEY, "") is None)
    first = presses.next()
    for payload in (first, first, "PRESS", "", "1", str(int(time.time()) + 3600)):
        await listener.say(PLACE, payload)
    await listener.say("esms-exporter/b_1/place/none", presses.next())
    await until(lambda: listener.json(STATE)[KEY] == "OFF")
    assert listener.json(STATE)[f"{KEY}_attributes"]["result"] == "success"
    assert placed.codes == ["100"]
    # The ledger has the press after a restart; a retained message is no press.
    kept = presses.next()
    await listener.say(PLACE, kept, retain=True)
    await until(lambda: len(placed.codes) == 2)
    with capture_logs() as logs:
        await bench.restart()
        await until(lambda: bool(bench.service.canaries.statuses))
        await until(lambda: any(line["event"] == "button press ignored" for line in logs))
        await listener.say(PLACE, first)
        await listener.say(PLACE, kept)
        await listener.say(PLACE, presses.next())
        await until(lambda: len(placed.codes) == 3)
        await listener.say(PLACE, presses.next())
        reasons = {"event": "canary call not placed", "reason": "max_per_day"}
        await until(lambda: any(reasons.items() <= line.items() for line in logs))
    assert placed.codes == ["100"] * 3
    assert len(set(placed.request_ids)) == 3


async def test_a_call_that_the_account_cannot_place_is_not_placed_later(
    simulator: Simulator, broker: Mosquitto, tmp_path: Path, placed: Placed
) -> None:
    presses, config = Presses(), HomeAssistantConfig(url=broker.url)
    app = partial(App, canaries=partial(Canaries, wait_for_slot=0.1))
    simulator.put_account(Account("main", "key", "s", state=AccountState.REVOKED))
    async with (
        Bench(simulator, tmp_path, app, home_assistant=config, canaries=(CANARY,)) as bench,
        listening(broker.port) as listener,
    ):
        await shown(listener)
        await bench.watch("a", "b")
        await until(lambda: listener.json(STATE)["polling"] == "auth")
        with capture_logs() as logs:
            await listener.say(PLACE, presses.next())
            reasons = {"event": "canary call not placed", "reason": "account_busy"}
            await until(lambda: any(reasons.items() <= line.items() for line in logs))
    assert placed.codes == []


async def test_the_configuration_is_reloaded(bench: Bench, listener: Listener) -> None:
    presses = Presses()
    await shown(listener)
    assert bench.config.home_assistant
    changed = bench.config.home_assistant.model_copy(update={"language": "vi"})
    bench.config = bench.config.model_copy(update={"home_assistant": changed})
    await listener.say(RELOAD, "PRESS")
    await listener.say(RELOAD, presses.next())
    name = "Xác thực"
    await until(lambda: listener.json(CONFIG)["components"]["credentials"]["name"] == name)


async def test_buttons_that_are_turned_off(
    bench: Bench, placed: Placed, listener: Listener
) -> None:
    presses = Presses()
    await shown(listener)
    assert bench.config.home_assistant
    on = bench.config.home_assistant
    await bench.change(home_assistant=on.model_copy(update={"buttons": False}))
    await until(lambda: f"place_{KEY}" not in listener.json(CONFIG)["components"])
    told = [one["components"].get(f"place_{KEY}") for one in listener.said(CONFIG)]
    assert {"platform": "button"} in told
    await listener.say(PLACE, presses.next())
    await bench.change(home_assistant=on)
    await shown(listener)
    await listener.say(PLACE, presses.next())
    await until(lambda: len(placed.codes) == 1)
