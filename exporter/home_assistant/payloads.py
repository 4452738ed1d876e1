"""Topics and payloads for Home Assistant. Pure.

One retained message describes a device with its entities (MQTT device discovery, Home Assistant
2024.11 and newer); clearing the message removes the device. Each device has one retained state.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal, NamedTuple

from pydantic_core import from_json, to_json

import exporter
from exporter.home_assistant.entities import Entity, topic_level

ONLINE: Final = b"online"
OFFLINE: Final = b"offline"

# The payload of a press is its Unix time, so that repeated and late presses are detected.
_PRESS: Final = "{{ now().timestamp() | int }}"
_MAX_PRESS_AGE: Final = 60.0
"""Maximum difference in seconds between a press and its arrival."""


class MqttKind(StrEnum):
    """Kind of a message: the label `kind` of `esms_mqtt_messages_total`."""

    DEVICE = "device"  # description of a device and its entities
    STATE = "state"  # state of the entities of a device
    EVENT = "event"  # finished call


class MqttOutcome(StrEnum):
    """Outcome of a message: the label `outcome` of `esms_mqtt_messages_total`."""

    PUBLISHED = "published"  # acknowledged by the broker
    FAILED = "failed"  # not acknowledged; published again


@dataclass(slots=True, eq=False)
class MqttStats:
    """Statistics of the connection to the broker, and numbers of messages, for metrics."""

    connected: bool = False
    connection_errors: int = 0
    messages: dict[MqttKind, dict[MqttOutcome, int]] = field(
        default_factory=lambda: {kind: dict.fromkeys(MqttOutcome, 0) for kind in MqttKind}
    )


class Device(NamedTuple):
    """A device of Home Assistant."""

    id: str  # also the prefix of the ids of its entities
    name: str  # also the prefix of the default ids of its entities
    config: str  # topic of its description
    state: str  # topic
    base: str  # prefix of its other topics
    via: str | None = None  # id of the device that it belongs to


class Topics:
    """The topics of an exporter, or of several that share a ledger.

    Attributes:
        exporter: the device of the exporter, which those of accounts belong to.
        availability: of all devices.
        birth: of Home Assistant's birth message.
        retained: filters for all retained messages of devices.
        presses: filters for presses of buttons.
    """

    def __init__(self, discovery_prefix: str, prefix: str) -> None:
        self._devices, self._prefix = f"{discovery_prefix}/device", prefix
        self._node = prefix.replace("/", "_")
        self.availability = f"{prefix}/availability"
        self.birth = f"{discovery_prefix}/status"
        self.exporter = Device(
            self._node,
            "eSMS exporter",
            f"{self._devices}/{self._node}/config",
            f"{prefix}/exporter",
            prefix,
        )
        every = self.account("+")
        self.retained = self.exporter.config, self.exporter.state, every.config, every.state
        self.presses = f"{prefix}/reload", f"{prefix}/+/place/+"

    def account(self, name: str) -> Device:
        level = topic_level(name)
        base = f"{self._prefix}/{level}"
        return Device(
            f"{self._node}_{level}",
            f"eSMS {name}",
            f"{self._devices}/{self._node}/{level}/config",
            f"{base}/state",
            base,
            self._node,
        )

    def event(self, account: str) -> str:
        return f"{self.account(account).base}/finished"

    def kind(self, topic: str) -> MqttKind:
        if topic.startswith(f"{self._devices}/"):
            return MqttKind.DEVICE
        return MqttKind.EVENT if topic.endswith("/finished") else MqttKind.STATE


class Descriptions(NamedTuple):
    """Values that the descriptions of all devices share."""

    availability: str  # topic
    language: Literal["en", "vi"] = "en"
    buttons: bool = True
    home_page: str | None = None  # URL, as the next
    status_page: str | None = None


def device(about: Device, entities: Iterable[Entity], common: Descriptions) -> bytes:
    """Return the description of a device with its entities."""
    described = {
        "identifiers": [about.id],
        "name": about.name,
        "manufacturer": "eSMS",
        "model": "Account" if about.via else "Exporter",
        "sw_version": exporter.__version__,
        "via_device": about.via,
        "configuration_url": common.status_page,
    }
    origin = {
        "name": "esms-exporter",
        "sw_version": exporter.__version__,
        "support_url": common.home_page,
    }
    payload = {
        "device": {key: value for key, value in described.items() if value},
        "origin": {key: value for key, value in origin.items() if value},
        "components": {
            entity.key: _component(about, entity, common.language)
            for entity in entities
            if common.buttons or entity.platform != "button"
        },
        "state_topic": about.state,
        "availability_topic": common.availability,
        "qos": 1,
    }
    return to_json(payload)


def _component(about: Device, entity: Entity, language: Literal["en", "vi"]) -> dict[str, Any]:
    # Any: JSON. The default ids are made of the English names, as in older versions.
    slug = re.sub("[^a-z0-9]+", "_", f"{about.name} {entity.names.en}".lower()).strip("_")
    component = {
        "platform": entity.platform,
        "name": entity.names.vi if language == "vi" else entity.names.en,
        "unique_id": f"{about.id}_{entity.key}",
        "default_entity_id": f"{entity.platform}.{slug}",
        **entity.options,
    }
    if entity.attributes is not None:
        given = f"value_json['{entity.key}_attributes'] | default({{}}) | tojson"
        component["json_attributes_topic"] = about.state
        component["json_attributes_template"] = f"{{{{ {given} }}}}"
    if entity.platform == "button":
        component |= {"command_topic": f"{about.base}/{entity.topic}", "command_template": _PRESS}
        component["qos"] = 1
    elif entity.platform == "event":
        component["state_topic"] = f"{about.base}/{entity.topic}"  # not retained
    else:
        # The default is for the retained state of an older version.
        component["value_template"] = f"{{{{ value_json['{entity.key}'] | default(none) }}}}"
    if not entity.enabled:
        component["enabled_by_default"] = False
    return component


def state(entities: Iterable[Entity]) -> bytes:
    """Return the state of the entities of a device."""
    values = dict[str, object]()
    for entity in entities:
        if entity.platform == "binary_sensor":
            on = entity.value
            values[entity.key] = None if on is None else "ON" if on else "OFF"
        elif entity.platform == "sensor":
            values[entity.key] = entity.value
        if entity.attributes is not None:
            values[f"{entity.key}_attributes"] = entity.attributes
    return to_json(values)


def removal(old: bytes | None, new: bytes) -> bytes | None:
    """Return the description that removes the entities of an old one that a new one lacks.

    Home Assistant keeps an entity whose component is only left out: it removes the entity of a
    component that has nothing but its platform. Return None if there are none, or if the old
    description is unusable.
    """
    try:
        found = from_json(old or b"null")["components"]
        gone = {
            key: {"platform": component["platform"]}
            for key, component in found.items()
            if isinstance(component["platform"], str)
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    described = from_json(new)
    gone = {key: component for key, component in gone.items() if key not in described["components"]}
    described["components"] |= gone
    return to_json(described) if gone else None


def press_time(payload: bytes, now: float, last: int, *, retained: bool) -> int:
    """Return the Unix time at which a button was pressed; `last` is that of the last press.

    Raises:
        ValueError: the press must be ignored; the text is the reason.
    """
    if retained:
        raise ValueError("retained")
    if not re.fullmatch(b"[0-9]{1,12}", payload):
        raise ValueError("malformed")
    if abs(now - (at := int(payload))) > _MAX_PRESS_AGE:
        raise ValueError("late")
    if at <= last:
        raise ValueError("repeated")
    return at
