"""`python -m deploy.rules`: copy rules for Kubernetes and the chart, and dashboards for the chart.

Helm reads only files in the chart.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

_HERE: Final = Path(__file__).parent
_CHART: Final = _HERE / "helm/esms-exporter/files"
_RULES: Final = _HERE.parent / "monitoring" / "rules"
_DASHBOARDS: Final = _HERE.parent / "monitoring" / "dashboards"
_HEAD: Final = "# Made from monitoring/rules by `python -m deploy.rules`.\n"


def written() -> dict[Path, str]:
    """Return the files with what is to be in them."""
    groups = {"groups": [group for file in _files() for group in _read(file)["groups"]]}
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "esms-exporter"},
        "spec": groups,
    }
    return {
        _HERE / "kubernetes/base/prometheusrule.yaml": _dump(resource),
        _CHART / "rules.yaml": _dump(groups),
        **{
            _CHART / "dashboards" / file.name: _compact(file.read_text())
            for file in _DASHBOARDS.glob("*.json")
        },
    }


def _files() -> list[Path]:
    return sorted(_RULES.glob("*.y*ml"))


def _read(file: Path) -> Any:  # Any: a document, which promtool checks
    return yaml.safe_load(file.read_text())


def _dump(document: Mapping[str, object]) -> str:
    return _HEAD + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)


def _compact(document: str) -> str:
    return json.dumps(json.loads(document), separators=(",", ":"), ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for path, text in written().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
