"""The kinds of panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from grafana_foundation_sdk.builders import (
    common,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from monitoring.links import RUNBOOKS

DATASOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")

COLOURS: Final = {
    "success": "green",
    "failure": "red",
    "unknown": "#8e8e8e",
    "ok": "green",
}
"""Colours of series with a known meaning. The legend names them as well, for colour-blind users."""

Queries = Mapping[str, str]
"""PromQL by legend."""


def single(
    title: str, description: str, unit: str, queries: Queries, *, none: str = "-", decimals: int = 0
) -> stat.Panel:
    """Return a panel of single numbers, at the end of the time range."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .decimals(decimals)
        .no_value(none)
        .height(4)
        .span(4)
        .graph_mode(options.BigValueGraphMode.NONE)
        .color_mode(options.BigValueColorMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .targets([query.instant() for query in _targets(queries)])
    )


def series(
    title: str, description: str, unit: str, queries: Queries, *, exemplars: bool = False
) -> timeseries.Panel:
    """Return a panel of lines over time, with exemplars of the queried metrics if wanted."""
    return (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .min(0)
        .height(8)
        .span(8)
        .fill_opacity(0)
        .line_width(1)
        .show_points(options.VisibilityMode.AUTO)
        .legend(
            common.VizLegendOptions()
            .display_mode(options.LegendDisplayMode.LIST)
            .placement(options.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(options.TooltipDisplayMode.MULTI)
            .sort(options.SortOrder.DESCENDING)
        )
        .targets(
            [
                query.range().exemplar(exemplar=True) if exemplars else query.range()
                for query in _targets(queries)
            ]
        )
    )


def coloured(panel: timeseries.Panel) -> timeseries.Panel:
    """Set the colours of series with a known meaning, and return the panel."""
    for name, colour in COLOURS.items():
        panel.override_by_name(name, [_property("color", mode="fixed", fixedColor=colour)])
    return panel


def share(title: str, description: str, queries: Queries) -> timeseries.Panel:
    """Return a panel of ratios over time.

    The minimum interval is a minute, because the ratio of a few calls would jump.
    """
    return series(title, description, "percentunit", queries).max(1).interval("1m")


def stacked(
    title: str, description: str, unit: str, queries: Queries, *, exemplars: bool = False
) -> timeseries.Panel:
    """Return a panel of parts that add up to a whole."""
    return (
        series(title, description, unit, queries, exemplars=exemplars)
        .fill_opacity(60)
        .stacking(common.StackingConfig().mode(options.StackingMode.NORMAL))
    )


def heat(title: str, description: str, buckets: str) -> heatmap.Panel:
    """Return a heat map of a histogram of seconds; the colour is the rate per second."""
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit("s")
        .height(8)
        .span(12)
        .calculate(calculate=False)
        .scale_distribution(common.ScaleDistributionConfig().type(options.ScaleDistribution.LINEAR))
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .exponent(0.5)
            .steps(64)
        )
        .y_axis(heatmap.YAxisConfig().unit("s"))
        .cell_values(heatmap.CellValues().unit("reqps"))
        .targets(
            [
                query.range().format(PromQueryFormat.HEATMAP)
                for query in _targets({"{{le}}": buckets})
            ]
        )
    )


def timeline(
    title: str, description: str, queries: Queries, states: Mapping[str, tuple[str, str]]
) -> statetimeline.Panel:
    """Return a panel of states over time, with a text and a colour for each value."""
    texts = {
        value: models.ValueMappingResult(text=text, color=colour, index=number)
        for number, (value, (text, colour)) in enumerate(states.items())
    }
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit("none")
        .mappings([models.ValueMap(options=texts)])
        .height(6)
        .span(12)
        .merge_values(True)
        .fill_opacity(70)
        .show_value(options.VisibilityMode.AUTO)
        .targets([query.range() for query in _targets(queries)])
    )


def runbooks(*alerts: str) -> list[Builder[models.DashboardLink]]:
    """Return the links of a panel to the runbooks of the related alerts."""
    return [
        builders.DashboardLink(alert)
        .type(models.DashboardLinkType.LINK)
        .url(f"{RUNBOOKS}/{alert}.md")
        .target_blank(True)
        for alert in alerts
    ]


def dashed() -> models.DynamicConfigValue:
    """Return the property for a dashed line: a limit, not a measurement."""
    return models.DynamicConfigValue(
        id_val="custom.lineStyle", value={"fill": "dash", "dash": [10, 10]}
    )


def _targets(queries: Queries) -> Sequence[prometheus.Dataquery]:
    return [
        prometheus.Dataquery()
        .datasource(DATASOURCE)
        .expr(expression)
        .legend_format(legend)
        .ref_id(chr(ord("A") + number))
        for number, (legend, expression) in enumerate(queries.items())
    ]


def _property(name: str, **value: str) -> models.DynamicConfigValue:
    return models.DynamicConfigValue(id_val=name, value=value)
