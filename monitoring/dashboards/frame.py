"""The common parts of all dashboards: variables, links, alerts, layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from monitoring.dashboards.panels import DATASOURCE
from monitoring.dashboards.promql import REPLICA, of_exporter
from monitoring.links import HOME, RUNBOOKS

TAG: Final = "esms-exporter"
ALL: Final = models.VariableOption(selected=True, text=["All"], value=["$__all"])

PanelBuilder = Builder[models.Panel]


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading. Their widths add up to whole lines of 24."""

    title: str
    panels: Sequence[PanelBuilder]


def frame(
    uid: str,
    title: str,
    description: str,
    variables: Iterable[Builder[models.VariableModel]],
    rows: Iterable[Row],
) -> models.Dashboard:
    """Return a dashboard."""
    board = (
        builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()  # changes in Grafana would be lost with the next version
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .refresh("30s")
        .time("now-6h", "now")
        .variables([_datasource(), *variables])
        .annotation(_alerts())
        .link(
            builders.DashboardLink("eSMS dashboards")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
        .link(
            _page("Runbooks", RUNBOOKS, "Meaning, impact, diagnosis and mitigation of each alert")
        )
        .link(_page("Documentation", HOME, "The exporter's home page"))
    )
    for row in rows:
        board.with_row(builders.Row(row.title))
        for panel in row.panels:
            board.with_panel(panel)
    built = board.build()
    for number, item in enumerate(built.panels or (), start=1):
        item.id_val = number
    return built


def as_json(board: models.Dashboard) -> str:
    """Return a dashboard as the text of its file."""
    return json.dumps(board, cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"


def job_and_instance() -> tuple[builders.QueryVariable, ...]:
    """Return the variables that select exporters."""
    return (
        _values("job", "Job", "esms_exporter_build_info"),
        _values("instance", "Instance", 'esms_exporter_build_info{job=~"$job"}'),
    )


def account() -> builders.QueryVariable:
    """Return the variable that selects accounts."""
    return _values("account", "Account", of_exporter("esms_account_authorized"))


def user_labels() -> tuple[Builder[models.VariableModel], ...]:
    """Return the variables for the labels in `watch.labels`, whose names are not known here.

    An ad hoc filter gets names and values from Prometheus, and Grafana adds the selection to every
    query. The other variable is the name of the label to split by.
    """
    names = (
        builders.QueryVariable("split")
        .label("Split by")
        .description("The label for the panels 'by ...': account, or one of watch.labels.")
        .datasource(DATASOURCE)
        .query("label_names(esms_calls_total)")
        .regex(f"/^(?!(?:__name__|job|result|status|{'|'.join(REPLICA.split(', '))})$).+$/")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .current(models.VariableOption(selected=True, text="account", value="account"))
    )
    filters = (
        builders.AdHocVariable("filter")
        .label("Filter")
        .description("Filters on labels of calls: any of watch.labels.")
        .datasource(DATASOURCE)
    )
    return names, filters


def _datasource() -> builders.DatasourceVariable:
    return (
        builders.DatasourceVariable("datasource")
        .label("Data source")
        .description("The Prometheus server that scrapes the exporter.")
        .type("prometheus")
    )


def _values(name: str, label: str, selector: str) -> builders.QueryVariable:
    return (
        builders.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(f"label_values({selector}, {name})")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(ALL)
    )


def _alerts() -> builders.AnnotationQuery:
    return (
        builders.AnnotationQuery()
        .name("Alerts")
        .datasource(DATASOURCE)
        .enable(True)
        .icon_color("red")
        .expr('ALERTS{alertname=~"Esms.+", alertstate="firing"}')
    )


def _page(title: str, url: str, tooltip: str) -> builders.DashboardLink:
    return (
        builders.DashboardLink(title)
        .type(models.DashboardLinkType.LINK)
        .icon("doc")
        .tooltip(tooltip)
        .url(url)
        .target_blank(True)
    )
