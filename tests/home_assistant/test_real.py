"""A real Home Assistant, where `HOME_ASSISTANT_PYTHON` names a Python that has one."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from exporter.simulator import Plan
from tests import subprocesses
from tests.brokers import Mosquitto
from tests.canaries.scene import Placed, by_hand
from tests.docs import pages
from tests.notify.bench import Bench
from tests.waiting import deadline, until

PYTHON = os.environ.get("HOME_ASSISTANT_PYTHON", "")

BLUEPRINT = pages.ROOT / "deploy/home-assistant/call_not_answered.yaml"
AUTOMATION = next(
    block.text
    for block in pages.blocks("docs/home-assistant.md")
    if block.text.startswith("automation:")
)


class HomeAssistant:
    """A running Home Assistant that can be asked what it knows."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, button: str = "") -> Any:  # Any: JSON
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{button}\n".encode())
        return json.loads(await self._process.stdout.readline())

    async def until(self, condition: Callable[[Any], bool]) -> Any:  # Any: JSON
        """Ask until it knows what it should."""
        known: Any = None
        try:
            async with deadline():
                while not condition(known := await self.ask()):  # noqa: ASYNC110 - it is asked
                    await asyncio.sleep(0.1)
        except TimeoutError:
            pytest.fail(json.dumps(known, indent=1))
        return known


@asynccontextmanager
async def home_assistant(broker: Mosquitto, folder: Path) -> AsyncIterator[HomeAssistant]:
    blueprints = folder / "blueprints/automation/esms"
    await asyncio.to_thread(blueprints.mkdir, parents=True)
    await asyncio.to_thread(shutil.copy, BLUEPRINT, blueprints)
    await asyncio.to_thread((folder / "automations.yaml").write_text, AUTOMATION)
    process = await subprocesses.start(
        *(PYTHON, str(Path(__file__).with_name("core.py")), str(broker.port), str(folder)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=1 << 20,
    )
    try:
        yield HomeAssistant(process)
    finally:
        process.kill()
        await process.wait()


def state(known: Any, entity: str) -> Any:  # Any: JSON
    return known["states"].get(entity, {}).get("state")


async def test_a_real_home_assistant(bench: Bench, broker: Mosquitto, tmp_path: Path) -> None:
    async with home_assistant(broker, tmp_path / "one") as home:
        failed = "sensor.esms_main_calls_failed_today"
        known = await home.until(lambda known: state(known, failed) == "0")
        await home.until(
            lambda known: (
                known["devices"]
                == {
                    "eSMS exporter": None,
                    "eSMS main": "eSMS exporter",
                    "eSMS b.1": "eSMS exporter",
                }
            )
        )
        await home.until(lambda known: state(known, "binary_sensor.esms_exporter_ready") == "on")
        assert "sensor.esms_main_calls_watched" in known["disabled"]
        assert state(known, "event.esms_main_call_finished") == "unknown"
        assert state(known, "sensor.esms_main_success_ratio_of_the_last_hour") == "unknown"
        assert state(known, "binary_sensor.esms_main_credentials") == "unknown"

        await bench.finish("fine", plan=Plan(), campaign="emergency")
        await bench.finish("other", plan=Plan(sent_result=0, call_status="FAILED"), campaign="otp")
        await bench.finish("bare", plan=Plan(sent_result=0, call_status="FAILED"))
        await bench.finish("rang", plan=Plan(call_status="NO_ANSWERED"), campaign="emergency")
        known = await home.until(lambda known: len(known["notified"]) == 1)
        assert known["notified"][0] == {
            "title": "An emergency call was not answered",
            "message": "rang: no_answer",
        }
        known = await home.until(lambda known: state(known, failed) == "2")
        assert state(known, "sensor.esms_main_calls_delivered_today") == "2"
        assert state(known, "sensor.esms_main_success_ratio_of_the_last_hour") == "50.0"
        assert state(known, "binary_sensor.esms_main_credentials") == "off"
        assert state(known, "binary_sensor.esms_main_provider") == "on"
        last = known["states"]["sensor.esms_main_last_failure"]
        assert last["state"].startswith("20")
        assert last["attributes"]["status"] == "failed"

        placed, button = Placed(bench.simulator), "button.esms_main_place_canary_call_hotline"
        await bench.change(accounts=bench.config.accounts[:1], canaries=(by_hand("hotline", 1),))
        await home.until(lambda known: set(known["devices"]) == {"eSMS exporter", "eSMS main"})
        await home.until(lambda known: state(known, button) == "unknown")
        await home.ask(button)
        await until(lambda: placed.codes == ["100"])
        assert bench.config.home_assistant
        vietnamese = bench.config.home_assistant.model_copy(update={"language": "vi"})
        await bench.change(canaries=(), home_assistant=vietnamese)
        known = await home.until(lambda known: button not in known["states"])
        await bench.stop()
        known = await home.until(lambda known: state(known, failed) == "unavailable")
        # Home Assistant clears the topic of a removed device too, and complains of its own message.
        own = "No device components to cleanup"
        complaints = [one for one in known["complaints"] if not one.startswith(own)]
        assert complaints == []
    async with home_assistant(broker, tmp_path / "two") as home:
        # What the broker keeps is there before any exporter is.
        known = await home.until(lambda known: failed in known["states"])
        name = known["states"][failed]["attributes"]["friendly_name"]
        assert name == "eSMS main Cuộc gọi thất bại hôm nay"
        assert known["notified"] == []
