"""The committed dashboards, as Grafana reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import monitoring.dashboards

FOLDER: Final = Path(monitoring.dashboards.__file__).parent
FILES: Final = sorted(FOLDER.glob("*.json"))

Json = dict[str, Any]  # Any: what a file may hold


@dataclass(frozen=True, slots=True)
class Target:
    """One query of one panel."""

    file: str
    panel: str
    expression: str
    instant: bool
    exemplars: bool = False

    @property
    def name(self) -> str:
        return f"{self.file}: {self.panel}"


def read(file: Path) -> Json:
    board: Json = json.loads(file.read_text())
    return board


def panels(board: Json) -> list[Json]:
    """Return the panels that show something; a row is a heading."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def targets() -> list[Target]:
    return [
        Target(
            *(file.name, panel["title"], target["expr"], target["instant"]),
            target.get("exemplar", False),
        )
        for file in FILES
        for panel in panels(read(file))
        for target in panel["targets"]
    ]


def substituted(text: str, values: Mapping[str, str]) -> str:
    """Put values in the place of variables, as Grafana does; the longest name first."""
    for name in sorted(values, key=len, reverse=True):
        for written in (f"${name}", f"${{{name}}}"):
            text = text.replace(written, values[name])
    return text
