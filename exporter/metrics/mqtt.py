"""The series of the MQTT broker through which Home Assistant is told."""

from __future__ import annotations

from enum import StrEnum

from exporter.metrics.catalogue import Catalogue


class MqttKind(StrEnum):
    """What a message is about: the label `kind` of `esms_mqtt_messages_total`."""

    DEVICE = "device"  # an account's device and its entities
    STATE = "state"  # the state of all of them
    EVENT = "event"  # a call that has finished


class MqttOutcome(StrEnum):
    """What became of a message: the label `outcome` of `esms_mqtt_messages_total`."""

    PUBLISHED = "published"  # the broker has it
    FAILED = "failed"  # it is sent again
    DROPPED = "dropped"  # an event that waited for the broker behind too many others


class MqttMetrics:
    """The series of the broker, all at 0."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._messages = {
            (kind, outcome): catalogue.mqtt_messages.labels(kind.value, outcome.value)
            for kind in MqttKind
            for outcome in MqttOutcome
            if kind is MqttKind.EVENT or outcome is not MqttOutcome.DROPPED
        }
        self.connected = catalogue.mqtt_connected.labels()
        self.connection_errors = catalogue.mqtt_errors.labels()

    def count(self, kind: MqttKind, outcome: MqttOutcome, messages: int = 1) -> None:
        """Count messages."""
        self._messages[kind, outcome].value += messages


def hide_mqtt(catalogue: Catalogue) -> None:
    """Drop the series: there is no broker."""
    for family in (
        catalogue.mqtt_connected,
        catalogue.mqtt_errors,
        catalogue.mqtt_messages,
    ):
        family.clear()
