"""Exporters that share a ledger, and tell one broker."""

from __future__ import annotations

import time
from itertools import chain

from exporter.config import HomeAssistantConfig
from exporter.home_assistant.payloads import Topics
from exporter.simulator import Plan, Simulator
from tests.brokers import Mosquitto, listening
from tests.canaries.scene import Placed, by_hand
from tests.databases import Server
from tests.notify.bench import Bench
from tests.waiting import until

AVAILABILITY = "esms-exporter/availability"
STATE = "esms-exporter/main/state"
OTHER = Topics("homeassistant", "esms-exporter").account("b.1").state
EVENTS = "esms-exporter/main/finished"
EXPORTER = "esms-exporter/exporter"
EXPORTER_CONFIG = "homeassistant/device/esms-exporter/config"
PLACE = "esms-exporter/main/place/hotline"
CANARY = by_hand("hotline", 144)


async def test_one_publishes_the_accounts_and_each_event_is_published_once(
    simulator: Simulator, broker: Mosquitto, server: Server
) -> None:
    with server.database() as url:
        ledger = url.replace("postgresql+psycopg:", "postgresql:")
        config = HomeAssistantConfig(url=broker.url)
        benches = [
            Bench(simulator, ledger, home_assistant=config, canaries=(CANARY,)) for _ in range(2)
        ]
        first, second = benches
        placed = Placed(simulator)
        try:
            async with listening(broker.port) as listener:
                for bench in benches:
                    await bench.start()
                await until(lambda: [len(bench.service.accounts) for bench in benches] == [1, 1])
                if "main" in second.service.accounts:
                    first, second = second, first
                await until(lambda: STATE in listener.kept and OTHER in listener.kept)
                await until(lambda: second.value("esms_mqtt_connected") == 1)
                for number in range(40):
                    simulator.add_call("main", f"call-{number}", Plan(sent=15))
                    await benches[number % 2].watch(f"call-{number}")
                await until(lambda: listener.json(STATE)["watched"] == 40)
                await until(lambda: listener.json(STATE)["success_today"] == 40)
                await until(lambda: len(listener.said(EVENTS)) == 40)
                assert len({event["reference_id"] for event in listener.said(EVENTS)}) == 40
                assert OTHER in listener.kept

                # One exporter publishes what they share, and one of them places a call.
                await until(lambda: EXPORTER in listener.kept)
                accounts = listener.json(EXPORTER)["exporters_attributes"]["accounts"]
                assert sorted(chain(*accounts.values())) == ["b.1", "main"]
                await until(lambda: "canary_hotline" in listener.json(STATE))
                press = str(int(time.time()))
                for _ in range(3):
                    await listener.say(PLACE, press)
                await until(lambda: bool(placed.codes))

                listener.heard.clear()
                await first.stop()
                simulator.add_call("main", "after", Plan())
                await second.watch("after")
                await until(lambda: listener.json(STATE)["success_today"] == 41)
                # Nobody was told that nobody tells.
                assert (AVAILABILITY, b"offline") not in listener.heard
                assert placed.codes == ["100"]
                await second.change(home_assistant=config.model_copy(update={"language": "vi"}))
                name = "Sẵn sàng"
                await until(
                    lambda: listener.json(EXPORTER_CONFIG)["components"]["ready"]["name"] == name
                )
                await second.stop()
                await until(lambda: listener.kept[AVAILABILITY] == b"offline")
        finally:
            for bench in benches:
                await bench.stop()
