"""Write the references: `make docs`."""

from __future__ import annotations

from pathlib import Path

from tools.reference import alertmanager, chart, configuration, logs, metrics

ROOT = Path(__file__).parents[2]
PAGES = {
    "docs/configuration.md": configuration.page,
    "docs/logs.md": logs.page,
    "docs/metrics.md": metrics.page,
    "deploy/compose/alertmanager/templates/conditions.vi.tmpl": alertmanager.conditions,
    "deploy/helm/esms-exporter/README.md": chart.page,
    "deploy/helm/esms-exporter/values.schema.json": chart.schema,
}


def main() -> None:
    """Write every file anew."""
    for name, page in PAGES.items():
        (ROOT / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
