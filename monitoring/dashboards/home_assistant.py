"""Panels of Home Assistant."""

from __future__ import annotations

from monitoring.dashboards.frame import Row
from monitoring.dashboards.panels import runbooks, series, timeline
from monitoring.dashboards.promql import of_exporter, rate


def home_assistant() -> Row:
    """Return the row of Home Assistant."""

    def a_minute(metric: str, by: str) -> str:
        return f"60 * {rate(of_exporter(metric), by)}"

    return Row(
        "Home Assistant",
        (
            timeline(
                "MQTT broker",
                "Whether the exporter is connected to the MQTT broker; no data without a broker "
                "in the configuration.",
                {"{{instance}}": f"min by (instance) ({of_exporter('esms_mqtt_connected')})"},
                {"0": ("disconnected", "red"), "1": ("connected", "green")},
            ).links(runbooks("EsmsHomeAssistantNotTold")),
            series(
                "MQTT connection errors",
                "Failed connections to the MQTT broker per minute.",
                "cpm",
                {"{{instance}}": a_minute("esms_mqtt_connection_errors_total", "instance")},
            )
            .links(runbooks("EsmsHomeAssistantNotTold"))
            .height(6)
            .span(12),
            series(
                "MQTT messages",
                "Messages for Home Assistant per minute, by kind and outcome.",
                "cpm",
                {
                    "{{instance}} {{kind}} {{outcome}}": a_minute(
                        "esms_mqtt_messages_total", "instance, kind, outcome"
                    )
                },
            ).span(24),
        ),
    )
