"""The references say what the code says now, and leave nothing out."""

from __future__ import annotations

import re

import pytest

from exporter.metrics.catalogue import Catalogue
from tests.config.test_config_schema import SCHEMA, keys
from tests.docs import pages
from tools.reference.__main__ import PAGES, ROOT
from tools.reference.events import MEANINGS
from tools.reference.logs import events, events_of
from tools.reference.metrics import name_of, own_metrics


@pytest.mark.parametrize("name", PAGES)
def test_it_is_fresh(name: str) -> None:
    assert (ROOT / name).read_text() == PAGES[name](), f"{name} is stale: run `make docs`"


def test_every_key_of_the_schema_is_there() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    missing = {key for key in keys(SCHEMA) if f"| `{key}` |" not in page}
    assert not missing


def test_every_metric_is_there() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    metrics = own_metrics(Catalogue())
    assert len(metrics) > 20
    for metric in metrics:
        assert f"\n## {name_of(metric)}\n\n{metric.documentation}\n" in page


def test_every_log_event_is_explained() -> None:
    assert {event.name for event in events()} == MEANINGS.keys()


def test_pages_name_events_that_exist() -> None:
    text = "\n".join(map(pages.text, pages.names()))
    named = {one or other for one, other in re.findall(r'event=(?:"([^"]+)"|(\w+))', text)}
    assert len(named) > 5
    assert named <= MEANINGS.keys()


@pytest.mark.parametrize("call", ["_log.info(event)", "_log.info('read', **about())"])
def test_a_log_event_that_is_no_literal_is_refused(call: str) -> None:
    with pytest.raises(LookupError):
        list(events_of(f"_log = structlog.get_logger(__name__)\n{call}\n", "module"))
