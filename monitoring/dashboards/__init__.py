"""Grafana dashboards, made by `python -m monitoring.dashboards`; the JSON beside is its output."""

from monitoring.dashboards.api import api
from monitoring.dashboards.exporter import exporter
from monitoring.dashboards.frame import as_json
from monitoring.dashboards.overview import overview

__all__ = ["as_json", "boards"]


def boards() -> dict[str, str]:
    """Return the text of each dashboard's file, by the file's name."""
    return {f"{board.uid}.json": as_json(board) for board in (overview(), api(), exporter())}
