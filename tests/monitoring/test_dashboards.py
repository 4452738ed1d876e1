from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from exporter.call_totals import CallTotals
from exporter.metrics.catalogue import Catalogue
from monitoring.dashboards import boards
from monitoring.dashboards.calls import FINISHED
from monitoring.dashboards.promql import REPLICA, call_total
from monitoring.links import HOME, RUNBOOKS
from tests.dashboards import FILES, FOLDER, panels, read, substituted, targets
from tests.monitoring.rules import promtool
from tests.programs import every_prometheus
from tools.reference.metrics import name_of, own_metrics, with_exemplars

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)

UNITS = {unit for unit in vars(units).values() if isinstance(unit, str)}

OF_PROMETHEUS = {"up", "scrape_duration_seconds"}
OF_THE_CLIENT_LIBRARY = re.compile("process_[a-z_]+")
NOT_SHOWN = {
    "esms_exporter_config_last_reload_success_timestamp_seconds",  # the panel shows whether
}


def test_the_files_are_what_the_generator_writes() -> None:
    """Where this fails: `python -m monitoring.dashboards`."""
    assert {file.name: file.read_text() for file in FILES} == boards()


@every_file
def test_grafana_knows_every_key(file: Path) -> None:
    """What Grafana's schema does not know is lost when it is read."""
    register_default_plugins()
    board = read(file)
    assert json.loads(json.dumps(Dashboard.from_json(board), cls=JSONEncoder)) == board


@every_file
def test_panels_have_what_a_reader_needs(file: Path) -> None:
    board = read(file)
    assert board["uid"] == file.stem
    assert not board["editable"]
    titles = [panel["title"] for panel in panels(board)]
    assert len(titles) == len(set(titles))
    for panel in panels(board):
        for text in (panel["title"], panel["description"]):
            assert text[0].isupper()
        assert panel["description"][-1] == "."
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert panel["targets"]
        for asked in (panel, *panel["targets"]):
            assert asked["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_show_the_exemplars_of_each_metric_that_has_them() -> None:
    metrics, totals = Catalogue(), CallTotals()
    totals.use_exemplars(enabled=True)
    metrics.read_calls(totals)
    asked = [target.expression for target in targets() if target.exemplars]
    names = re.findall(r"(\w+)\{", "".join(asked))
    assert {name.removesuffix("_bucket") for name in names} == with_exemplars(metrics)


@every_file
def test_variables_look_as_on_other_dashboards(file: Path) -> None:
    variables = {variable["name"]: variable for variable in read(file)["templating"]["list"]}
    datasource = variables.pop("datasource")
    assert (datasource["type"], datasource["label"]) == ("datasource", "Data source")
    for name in ("job", "instance", "account"):
        variable = variables.pop(name)
        assert variable["label"] == name.title()
        assert (variable["multi"], variable["includeAll"], variable["allValue"]) == (
            True,
            True,
            ".+",
        )
        assert variable["refresh"] == 2  # when the time range changes
        assert variable["datasource"]["uid"] == "${datasource}"
    labels = {"split": "query", "filter": "adhoc"} if file.stem == "esms-overview" else {}
    assert {name: variable["type"] for name, variable in variables.items()} == labels


@every_file
def test_panels_neither_overlap_nor_leave_gaps(file: Path) -> None:
    board = read(file)
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(numbers) == len(set(numbers))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + right, place["y"] + down)
            for right in range(place["w"])
            for down in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    height = max(y for _, y in taken) + 1
    assert taken == {(x, y) for x in range(24) for y in range(height)}


@every_file
def test_links_lead_to_the_project(file: Path) -> None:
    board = read(file)
    links = [*board["links"], *(link for panel in panels(board) for link in panel.get("links", ()))]
    assert [link["url"] for link in links if link["type"] == "link"]
    for link in links:
        assert link["type"] == "dashboards" or link["url"].startswith(HOME)


@every_file
def test_every_linked_runbook_is_there(file: Path) -> None:
    folder = FOLDER.parents[1] / "docs" / "runbooks"
    linked = {
        link["url"].removeprefix(f"{RUNBOOKS}/")
        for panel in panels(read(file))
        for link in panel.get("links", ())
    }
    assert linked
    assert linked <= {page.name for page in folder.iterdir()}


def test_queries_choose_by_the_variables() -> None:
    for target in targets():
        selectors = re.findall(r"\w+\{(.*?)\}", target.expression)
        assert selectors, target
        for selector in selectors:
            assert selector.startswith('job=~"$job", instance=~"$instance"'), target


def test_counters_are_shown_by_what_they_grow() -> None:
    # A counter, a histogram's among them: what comes before it, and the window after it.
    counter = re.compile(
        r"(.{0,80})\b\w+_(?:total|bucket|sum|count)\{.*?\}"
        r"(?: or histogram_\w+\(\w+\{.*?\}\))?(\)?\[.*?\]|\) > 0)?"
    )
    found = 0
    for target in targets():
        for before, window in counter.findall(target.expression):
            found += 1
            if window == ") > 0":  # whether it ever grew
                assert target.panel in {"Credentials", "Spend per call"}
            elif before.endswith("rate("):
                assert window == "[$__rate_interval]", target
            elif before.endswith("increase("):
                assert window == "[$__range]", target
            else:
                taken = re.compile(rf"(last|min)_over_time\(max without \({REPLICA}\) \($")
                assert taken.search(before), target
                assert window == ")[${__range}1ms:$__interval]", target
    assert found > 50


@every_prometheus
def test_a_total_holds_all_of_the_time_that_is_shown(version: str, tmp_path: Path) -> None:
    values = dict.fromkeys(("job", "instance", "account"), ".+")
    query = substituted(call_total(FINISHED), {**values, "__range": "1h", "__interval": "1m"})
    replicas = [f'esms_calls_total{{job="esms", instance="{n}", account="main"}}' for n in "ab"]
    case = {
        "interval": "1m",
        "input_series": [{"series": series, "values": "0+1x90"} for series in replicas],
        "promql_expr_test": [
            {"expr": query, "eval_time": "90m", "exp_samples": [{"labels": "{}", "value": 60}]}
        ],
    }
    (tmp_path / "case.yaml").write_text(yaml.safe_dump({"tests": [case]}))
    tested = promtool(version, "test", "rules", "case.yaml", folder=tmp_path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_metric_is_shown_and_every_query_asks_for_one_that_exists() -> None:
    existing = set(map(name_of, own_metrics(Catalogue())))
    asked = {name for target in targets() for name in re.findall(r"(\w+)\{", target.expression)}
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in asked}
    foreign = {
        name for name in shown if name in OF_PROMETHEUS or OF_THE_CLIENT_LIBRARY.fullmatch(name)
    }
    assert shown - foreign <= existing
    assert existing - shown == NOT_SHOWN
