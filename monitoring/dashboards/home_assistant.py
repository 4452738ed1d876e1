"""Is Home Assistant told?"""

from __future__ import annotations

from monitoring.dashboards.frame import Row
from monitoring.dashboards.panels import runbooks, series, timeline
from monitoring.dashboards.promql import of_exporter, rate


def home_assistant() -> Row:
    """Return the panels of the way to Home Assistant."""

    def a_minute(metric: str, by: str) -> str:
        return f"60 * {rate(of_exporter(metric), by)}"

    return Row(
        "Home Assistant",
        (
            timeline(
                "MQTT broker",
                "Whether the broker through which Home Assistant is told is connected; nothing "
                "where none is configured.",
                {"{{instance}}": f"min by (instance) ({of_exporter('esms_mqtt_connected')})"},
                {"0": ("away", "red"), "1": ("connected", "green")},
            ).links(runbooks("EsmsHomeAssistantNotTold")),
            series(
                "MQTT connection errors",
                "Connections a minute that could not be made, or that broke.",
                "cpm",
                {"{{instance}}": a_minute("esms_mqtt_connection_errors_total", "instance")},
            )
            .links(runbooks("EsmsHomeAssistantNotTold"))
            .height(6)
            .span(12),
            series(
                "MQTT messages",
                "Messages a minute, by what they are about and what became of them. Dropped are "
                "calls that nobody will be told of, because too many waited for the broker.",
                "cpm",
                {
                    "{{instance}} {{kind}} {{outcome}}": a_minute(
                        "esms_mqtt_messages_total", "instance, kind, outcome"
                    )
                },
            ).span(24),
        ),
    )
