"""The references say what the code says now, and leave nothing out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from exporter.config import json_schema
from exporter.metrics.catalogue import Catalogue
from tools.reference.__main__ import DOCS, PAGES
from tools.reference.metrics import name_of, own_metrics


@pytest.mark.parametrize("name", PAGES)
def test_it_is_fresh(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name](), f"docs/{name} is stale: run `make docs`"


def keys(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield every key that a configuration may have, wherever it stands."""
    for name, value in schema.items():
        if name == "properties":
            yield from value
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                yield from keys(inner)


def test_every_key_of_the_schema_is_there() -> None:
    page = (DOCS / "configuration.md").read_text()
    missing = {key for key in keys(json_schema()) if f"| `{key}` |" not in page}
    assert not missing


def test_every_metric_is_there() -> None:
    page = (DOCS / "metrics.md").read_text()
    metrics = own_metrics(Catalogue())
    assert len(metrics) > 20
    for metric in metrics:
        assert f"\n## {name_of(metric)}\n\n{metric.documentation}\n" in page
