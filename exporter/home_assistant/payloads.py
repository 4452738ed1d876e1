"""Topics and payloads for Home Assistant. Pure.

One retained message describes a device with its entities (MQTT device discovery, Home Assistant
2024.11 and newer); clearing the message removes the device. Home Assistant shows `null` as unknown.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from pydantic_core import to_json

import exporter
from exporter.account import AccountStatus
from exporter.calls import Result
from exporter.esms.codes import Outcome
from exporter.recent_results import Recent

ONLINE: Final = b"online"
OFFLINE: Final = b"offline"

Component = dict[str, Any]  # Any: JSON

_CALLS: Final = {"p": "sensor", "state_class": "measurement", "unit_of_meas": "calls"}
# Counters of the current day: Home Assistant treats a decrease as a reset of the counter.
_TODAY: Final = {"p": "sensor", "state_class": "total_increasing", "unit_of_meas": "calls"}
_DIAGNOSTIC: Final = {"p": "binary_sensor", "ent_cat": "diagnostic"}

_ENTITIES: Final[dict[str, Component]] = {
    "credentials": {**_DIAGNOSTIC, "name": "Credentials", "dev_cla": "problem"},
    "connectivity": {**_DIAGNOSTIC, "name": "Provider", "dev_cla": "connectivity"},
    "success_ratio": {
        "p": "sensor",
        "name": "Success ratio of the last hour",
        "ic": "mdi:percent",
        "state_class": "measurement",
        "unit_of_meas": "%",
        "sug_dsp_prc": 1,
    },
    "watched": {**_CALLS, "name": "Calls watched", "ic": "mdi:phone-clock"},
    "success_today": {**_TODAY, "name": "Calls delivered today", "ic": "mdi:phone-check"},
    "failure_today": {**_TODAY, "name": "Calls failed today", "ic": "mdi:phone-remove"},
    "unknown_today": {**_TODAY, "name": "Calls without a result today", "ic": "mdi:phone-alert"},
    "last_failure": {
        "p": "sensor",
        "name": "Last failure",
        "dev_cla": "timestamp",
        "json_attr_tpl": "{{ value_json.failure | tojson }}",
    },
    # For monetary values, Home Assistant has long-term statistics only as `total`.
    "balance": {
        "p": "sensor",
        "name": "Balance",
        "dev_cla": "monetary",
        "state_class": "total",
        "unit_of_meas": "VND",
    },
}
"""Entities by the key of their value in the state."""

# Reasons of a pause that come from the provider's answers: the provider is reachable.
_REACHED: Final = frozenset({Outcome.AUTH, Outcome.THROTTLED})


class MqttKind(StrEnum):
    """Kind of a message: the label `kind` of `esms_mqtt_messages_total`."""

    DEVICE = "device"  # description of an account's device and entities
    STATE = "state"  # state of the entities of an account
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


class Topics:
    """The topics of an exporter, or of several that share a ledger.

    Args:
        discovery_prefix: Home Assistant's discovery prefix.
        prefix: prefix of the exporter's own topics.

    Attributes:
        node: part of the topics that distinguishes installations.
        availability: topic of the availability of all devices.
        birth: topic of Home Assistant's birth message.
        retained: topic filters for all retained messages of accounts.
    """

    def __init__(self, discovery_prefix: str, prefix: str) -> None:
        self._devices, self._prefix = f"{discovery_prefix}/device", prefix
        self.node = prefix.replace("/", "_")
        self.availability = f"{prefix}/availability"
        self.birth = f"{discovery_prefix}/status"
        self.retained = self.device("+"), self.state("+")

    def device(self, account: str) -> str:
        """Return the topic of an account's device."""
        return f"{self._devices}/{self.node}/{device_of(account)}/config"

    def state(self, account: str) -> str:
        """Return the topic of an account's state."""
        return f"{self._prefix}/{device_of(account)}/state"

    def event(self, account: str) -> str:
        """Return the topic of an account's events."""
        return f"{self._prefix}/{device_of(account)}/finished"

    def kind(self, topic: str) -> MqttKind:
        """Return the kind of the messages of a topic."""
        if topic.startswith(f"{self._devices}/"):
            return MqttKind.DEVICE
        return MqttKind.EVENT if topic.endswith("/finished") else MqttKind.STATE


def device_of(account: str) -> str:
    """Return the topic level of an account.

    Home Assistant allows letters, digits, `_` and `-`; account names may also contain dots.
    """
    if "." not in account:
        return account
    suffix = hashlib.sha256(account.encode()).hexdigest()[:8]
    return f"{account.replace('.', '_')}-{suffix}"


def device(topics: Topics, account: str, *, with_balance: bool) -> bytes:
    """Return the description of an account's device."""
    unique, components = f"{topics.node}_{device_of(account)}", dict[str, Component]()
    for key, entity in _ENTITIES.items():
        if key != "balance" or with_balance:
            value = {"val_tpl": f"{{{{ value_json.{key} }}}}", "uniq_id": f"{unique}_{key}"}
            components[key] = {**entity, **value}
    components["last_failure"]["json_attr_t"] = topics.state(account)
    # Events are not retained.
    components["finished"] = {
        "p": "event",
        "name": "Call finished",
        "ic": "mdi:phone-hangup",
        "stat_t": topics.event(account),
        "evt_typ": [result.value for result in Result],
        "uniq_id": f"{unique}_finished",
    }
    described = {
        "dev": {
            "ids": [unique],
            "name": f"eSMS {account}",
            "mf": "eSMS",
            "mdl": "Voice account",
        },
        "o": {"name": "esms-exporter", "sw": exporter.__version__},
        "cmps": components,
        "stat_t": topics.state(account),
        "avty_t": topics.availability,
        "qos": 1,
    }
    return to_json(described)


def state(status: AccountStatus, recent: Recent, watched: int, balance: float | None) -> bytes:
    """Return the state of an account's entities; `balance` is in VND."""
    success = sum(minute.success for minute in recent.minutes)
    known = success + sum(minute.failure for minute in recent.minutes)
    failure = recent.failures[0] if recent.failures else None
    values = {
        "credentials": _switch(None if status.authorized is None else not status.authorized),
        "connectivity": _switch(_reached(status)),
        # Without unknown results, as in the alerts: they do not show how calls ended.
        "success_ratio": round(100 * success / known, 2) if known else None,
        "watched": watched,
        **{f"{result}_today": recent.results[result] for result in Result},
        "last_failure": _time(failure.finished_at) if failure else None,
        "failure": {
            "reference_id": failure.reference_id,
            "result": failure.result.value,
            "status": failure.status.value,
        }
        if failure
        else {},
        **({} if balance is None else {"balance": balance}),
    }
    return to_json(values)


def _reached(status: AccountStatus) -> bool | None:
    if status.paused is not None:
        return status.paused in _REACHED
    return True if status.authorized is not None or status.last_success else None


def _switch(on: bool | None) -> str | None:  # noqa: FBT001 - a value, not an option
    return None if on is None else "ON" if on else "OFF"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
