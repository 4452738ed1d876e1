"""Home Assistant's core with its MQTT integration and automations, for a test that asks it.

Run by the Python that Home Assistant is installed for, with the port of a broker and a folder in
which `automations.yaml` and blueprints lie. For each line that it reads, it writes what it knows,
as JSON; a line that names a button presses it first.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

import yaml
from homeassistant import auth, bootstrap, config_entries, core, loader
from homeassistant.helpers import device_registry, entity_registry
from homeassistant.setup import async_setup_component

BIRTH = {"topic": "homeassistant/status", "payload": "online", "qos": 0, "retain": False}


class Complaints(logging.Handler):
    """What the MQTT integration does not like."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("homeassistant.components"):
            self.told.append(record.getMessage())


async def main(port: int, folder: Path) -> None:
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    hass = core.HomeAssistant(str(folder))
    (folder / "configuration.yaml").touch()
    loader.async_setup(hass)
    hass.config.skip_pip = True
    hass.config_entries = config_entries.ConfigEntries(hass, {})
    await bootstrap.async_load_base_functionality(hass)
    hass.auth = await auth.auth_manager_from_config(hass, [], [])
    hass.set_state(core.CoreState.running)
    notified: list[Any] = []  # Any: JSON

    async def notify(call: core.ServiceCall) -> None:
        notified.append(dict(call.data))

    hass.services.async_register("notify", "notify", notify)
    automations = yaml.safe_load((folder / "automations.yaml").read_text())
    assert await async_setup_component(hass, "automation", automations)
    entry = config_entries.ConfigEntry(
        data={"broker": "127.0.0.1", "port": port},
        discovery_keys={},
        domain="mqtt",
        minor_version=2,
        options={"discovery": True, "birth_message": BIRTH},
        source="user",
        subentries_data=None,
        title="broker",
        unique_id=None,
        version=1,
    )
    await hass.config_entries.async_add(entry)
    while line := await asyncio.to_thread(sys.stdin.readline):
        if button := line.strip():
            await hass.services.async_call("button", "press", {"entity_id": button}, blocking=True)
        devices = device_registry.async_get(hass).devices.values()
        names = {one.id: one.name for one in devices}
        known = {
            "states": {state.entity_id: state.as_dict() for state in hass.states.async_all()},
            "devices": {one.name: names.get(one.via_device_id) for one in devices},
            "disabled": [
                one.entity_id
                for one in entity_registry.async_get(hass).entities.values()
                if one.disabled_by
            ],
            "notified": notified,
            "complaints": complaints.told,
        }
        print(json.dumps(known, default=str), flush=True)
    await hass.async_stop(force=True)


asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
