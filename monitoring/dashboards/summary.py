"""The overview as a table: one line for each value of a label."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.builders import prometheus, table
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.common import FieldTextAlignment
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from monitoring.dashboards.calls import (
    ANSWERED,
    FINISHED,
    KNOWN,
    SEIZED,
    SUCCESS,
    TALKED,
    TALKS,
)
from monitoring.dashboards.panels import DATASOURCE
from monitoring.dashboards.promql import call_total, ratio

COLUMNS: Final = (
    ("Finished calls", "short", 0, call_total(FINISHED, "$split")),
    (
        "Success ratio",
        "percentunit",
        1,
        ratio(call_total(SUCCESS, "$split"), call_total(KNOWN, "$split")),
    ),
    (
        "ASR",
        "percentunit",
        1,
        ratio(call_total(ANSWERED, "$split"), call_total(SEIZED, "$split")),
    ),
    ("ACD", "s", 1, ratio(call_total(TALKED, "$split"), call_total(TALKS, "$split"))),
)
"""Heading, unit, decimals and query of each column."""


def by_label() -> table.Panel:
    """Return the table."""
    panel = (
        table.Panel()
        .title("By $split")
        .description(
            "Calls that finished in the time range, with their success ratio, ASR and ACD, for "
            "each value of the label in `Split by`."
        )
        .datasource(DATASOURCE)
        .unit("short")
        .align(FieldTextAlignment.AUTO)
        .height(7)
        .span(24)
        # Queries come as tables of their own: one line for each value, one column for each query.
        .with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            models.DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True},
                    "renameByName": {
                        f"Value #{_ref(number)}": heading
                        for number, (heading, *_) in enumerate(COLUMNS)
                    },
                },
            )
        )
    )
    for number, (heading, unit, decimals, expression) in enumerate(COLUMNS):
        panel.with_target(
            prometheus.Dataquery()
            .datasource(DATASOURCE)
            .expr(expression)
            .instant()
            .format(PromQueryFormat.TABLE)
            .ref_id(_ref(number))
        ).override_by_name(
            heading,
            [
                models.DynamicConfigValue(id_val="unit", value=unit),
                models.DynamicConfigValue(id_val="decimals", value=decimals),
            ],
        )
    return panel


def _ref(number: int) -> str:
    return chr(ord("A") + number)
