"""How Home Assistant is told which devices and entities there are. Pure.

As its MQTT integration documents it: one retained message for a device with all its entities, which
Home Assistant 2024.11 and newer read. Removing the message removes the device.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import exporter
from exporter.calls import Result

ONLINE: Final = b"online"
OFFLINE: Final = b"offline"

STATE: Final = "state"
"""The last level of the topic with an account's state."""

FINISHED: Final = "finished"
"""The last level of the topic with the calls of an account that finish."""

Component = dict[str, Any]  # Any: JSON

_CALLS: Final = {"state_class": "measurement", "unit_of_meas": "calls"}
# Of a day: Home Assistant takes a value that is less than the one before for a new beginning.
_CALLS_TODAY: Final = {"state_class": "total_increasing", "unit_of_meas": "calls"}
_TODAY: Final = {
    Result.SUCCESS: ("Calls delivered today", "mdi:phone-check"),
    Result.FAILURE: ("Calls failed today", "mdi:phone-remove"),
    Result.UNKNOWN: ("Calls without a result today", "mdi:phone-alert"),
}


class MqttKind(StrEnum):
    """What a message is about: the label `kind` of `esms_mqtt_messages_total`."""

    DEVICE = "device"  # an account's device and its entities
    STATE = "state"  # the state of all of them
    EVENT = "event"  # a call that has finished


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one exporter, or of several that share a ledger.

    Args:
        discovery_prefix: at which Home Assistant looks for devices.
        topic_prefix: what the exporter's own topics begin with.
    """

    discovery_prefix: str
    topic_prefix: str

    @property
    def node(self) -> str:
        """What tells these devices from those of others."""
        return self.topic_prefix.replace("/", "_")

    @property
    def availability(self) -> str:
        """Where it is said whether anybody tells of the accounts."""
        return f"{self.topic_prefix}/availability"

    @property
    def birth(self) -> str:
        """Where Home Assistant says that it has started."""
        return f"{self.discovery_prefix}/status"

    @property
    def retained(self) -> tuple[str, ...]:
        """Filters for everything that stays with the broker for an account."""
        return self.config("+"), self.of("+", STATE)

    def kind(self, topic: str) -> MqttKind:
        """Return what a message is about that is published on a topic."""
        if topic.startswith(f"{self.discovery_prefix}/device/"):
            return MqttKind.DEVICE
        return MqttKind.EVENT if topic.endswith(f"/{FINISHED}") else MqttKind.STATE

    def config(self, device: str) -> str:
        """Return where a device is described."""
        return f"{self.discovery_prefix}/device/{self.node}/{device}/config"

    def of(self, device: str, kind: str) -> str:
        """Return where something is told of a device."""
        return f"{self.topic_prefix}/{device}/{kind}"


def device_of(account: str) -> str:
    """Return the level of topics that stands for an account.

    Home Assistant takes letters, digits, `_` and `-`; a name may hold dots, too.
    """
    if "." not in account:
        return account
    told_apart = hashlib.sha256(account.encode()).hexdigest()[:8]
    return f"{account.replace('.', '_')}-{told_apart}"


def discovery(topics: Topics, account: str, *, with_balance: bool) -> bytes:
    """Return the description of an account's device.

    Args:
        topics: of the exporter.
        account: its name.
        with_balance: its balance is known.
    """
    device = device_of(account)
    unique = f"{topics.node}_{device}"
    state = topics.of(device, STATE)
    components = _components(state, topics.of(device, FINISHED), with_balance=with_balance)
    described = {
        "dev": {
            "ids": [unique],
            "name": f"eSMS {account}",
            "mf": "eSMS",
            "mdl": "Voice account",
        },
        "o": {"name": "esms-exporter", "sw": exporter.__version__},
        "cmps": {
            key: {**component, "uniq_id": f"{unique}_{key}"}
            for key, component in components.items()
        },
        "stat_t": state,
        "avty_t": topics.availability,
        "qos": 1,
    }
    return json.dumps(described, separators=(",", ":")).encode()


def _components(state: str, finished: str, *, with_balance: bool) -> dict[str, Component]:
    components: dict[str, Component] = {
        "credentials": _entity(
            "binary_sensor", "Credentials", dev_cla="problem", ent_cat="diagnostic"
        ),
        "connectivity": _entity(
            "binary_sensor", "Provider", dev_cla="connectivity", ent_cat="diagnostic"
        ),
        "success_ratio": _entity(
            "sensor",
            "Success ratio of the last hour",
            state_class="measurement",
            unit_of_meas="%",
            sug_dsp_prc=1,
            ic="mdi:percent",
        ),
        "watched": _entity("sensor", "Calls watched", ic="mdi:phone-clock", **_CALLS),
        **{
            f"{result}_today": _entity("sensor", name, ic=icon, **_CALLS_TODAY)
            for result, (name, icon) in _TODAY.items()
        },
        "last_failure": _entity(
            "sensor",
            "Last failure",
            dev_cla="timestamp",
            json_attr_t=state,
            json_attr_tpl="{{ value_json.failure | tojson }}",
        ),
        # Each event is told once, and kept by nobody.
        "finished": {
            "p": "event",
            "name": "Call finished",
            "stat_t": finished,
            "evt_typ": [result.value for result in Result],
            "ic": "mdi:phone-hangup",
        },
    }
    if with_balance:
        # Of money, Home Assistant keeps statistics as totals alone.
        components["balance"] = _entity(
            "sensor", "Balance", dev_cla="monetary", state_class="total", unit_of_meas="VND"
        )
    for key, component in components.items():
        if component["p"] != "event":
            component["val_tpl"] = f"{{{{ value_json.{key} }}}}"
    return components


def _entity(platform: str, name: str, **about: object) -> Component:
    return {"p": platform, "name": name, **about}
