"""Exporters that share a ledger, and tell one broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.config import HomeAssistantConfig
from exporter.home_assistant import accounts, telling
from exporter.simulator import Plan, Simulator
from tests.brokers import Mosquitto, listening
from tests.databases import Server, postgresql
from tests.home_assistant.bench import Bench
from tests.waiting import until

AVAILABILITY = "esms-exporter/availability"
STATE = "esms-exporter/main/state"
EVENTS = "esms-exporter/main/finished"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql() as server:
        yield server


async def test_one_tells_of_accounts_and_each_of_the_calls_that_it_saw_the_end_of(
    simulator: Simulator, broker: Mosquitto, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "_COUNT_EVERY", 0.5)
    with server.database() as url:
        ledger = url.replace("postgresql+psycopg:", "postgresql:")
        benches = [Bench(simulator, ledger, HomeAssistantConfig(url=broker.url)) for _ in range(2)]
        first, second = benches
        try:
            async with listening(broker.port) as listener:
                for bench in benches:
                    await bench.start()
                await until(lambda: STATE in listener.kept)
                await until(lambda: second.connected == 1)
                # One that has just joined may speak for all until its next beat.
                beaten = second.service.metrics.last_heartbeat.labels()
                joined = beaten.value
                await until(lambda: beaten.value > joined)
                await second.pause(2)
                said = second.messages("state", "published")
                for number in range(40):
                    simulator.add_call("main", f"call-{number}", Plan(sent=4))
                    await benches[number % 2].watch(f"call-{number}")
                assert first.service.calls.count
                assert second.service.calls.count
                await until(lambda: listener.json(STATE)["watched"] == 40)
                await until(lambda: listener.json(STATE)["success_today"] == 40)
                await until(lambda: len(listener.said(EVENTS)) == 40)
                assert len({event["reference_id"] for event in listener.said(EVENTS)}) == 40
                assert all(bench.messages("event", "published") for bench in benches)
                assert second.messages("state", "published") == said

                listener.heard.clear()
                await first.service.stop()
                await second.finish("after")
                await until(lambda: listener.json(STATE)["success_today"] == 41)
                # Nobody was told that nobody tells.
                assert (AVAILABILITY, b"offline") not in listener.heard
                await second.service.stop()
                await until(lambda: listener.kept[AVAILABILITY] == b"offline")
        finally:
            for bench in benches:
                await bench.service.stop()


async def test_who_begins_to_tell_looks_at_what_others_have_told(
    simulator: Simulator, broker: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leading = [True]
    monkeypatch.setattr(telling.HomeAssistant, "_leads", lambda _: leading[-1])
    monkeypatch.setattr(accounts, "_EVERY", 0.05)
    gone = "homeassistant/device/esms-exporter/gone/config"
    ledger = f"sqlite:///{tmp_path / 'ledger.db'}"
    bench = Bench(simulator, ledger, HomeAssistantConfig(url=broker.url))
    try:
        async with listening(broker.port) as listener:
            await bench.start()
            await until(lambda: STATE in listener.kept)
            leading.append(False)
            await bench.pause(0.5)
            await listener.say(STATE, '{"watched": 17}', retain=True)
            await listener.say(gone, "{}", retain=True)
            await until(lambda: listener.json(STATE)["watched"] == 17 and gone in listener.kept)
            leading.append(True)
            await until(lambda: listener.json(STATE)["watched"] == 0)
            await until(lambda: not listener.kept.get(gone))
    finally:
        await bench.service.stop()
