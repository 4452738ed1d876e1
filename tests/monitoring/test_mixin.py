from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests import subprocesses
from tests.dashboards import FILES, Json, panels, read
from tests.monitoring.rules import RULES, promtool
from tests.programs import every_prometheus, program

MONITORING = RULES[0].parents[1]
CONFIG = """{
  selector: 'cluster="prod", env!~"a|b"',
  objective: 0.97,
  thresholds+: { 'global:esms_calls_minimum:threshold': 5 },
  runbookUrl: 'https://wiki.example.com/esms',
}"""
SELECTOR = 'cluster="prod", env!~"a|b"'
OUTAGE = """
rule_files: [rules.json]
tests:
  - interval: 1m
    input_series:
      - {series: 'up{job="esms", instance="a", cluster="prod"}', values: 0x10}
      - {series: 'up{job="esms", instance="a", cluster="test"}', values: 0x10}
    promql_expr_test:
      - expr: count by (cluster) (ALERTS{alertname="EsmsExporterDown", alertstate="firing"})
        eval_time: 5m
        exp_samples: [{labels: '{cluster="prod"}', value: 1}]
"""

# A series of Prometheus or the exporter; recorded ones have a colon.
SERIES = re.compile(r"(?<![\w:.*])(?:esms_\w+|up\b)(?!:)(\{[^}]*\})?")


def render(config: str) -> subprocess.CompletedProcess[str]:
    jsonnet = program("jsonnet", "go install github.com/google/go-jsonnet/cmd/jsonnet")
    code = f"""
        local mixin = (import 'mixin.libsonnet') + {{ _config+:: {config} }};
        {{
          groups: mixin.prometheusRules.groups + mixin.prometheusAlerts.groups,
          dashboards: mixin.grafanaDashboards,
        }}"""
    return subprocesses.run(jsonnet, "--exec", code, cwd=MONITORING)


def rendered(config: str) -> Json:
    shown = render(config)
    assert shown.returncode == 0, shown.stderr
    mixin: Json = json.loads(shown.stdout)
    return mixin


def by_name(groups: list[Json]) -> dict[str, Json]:
    return {group["name"]: group for group in groups}


def test_its_defaults_are_the_files() -> None:
    mixin = rendered("{}")
    committed = [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]
    assert by_name(mixin["groups"]) == by_name(committed)
    assert len(mixin["groups"]) == len(committed)
    assert mixin["dashboards"] == {file.name: read(file) for file in FILES}


@every_prometheus
def test_rules_with_another_configuration(version: str, tmp_path: Path) -> None:
    groups = rendered(CONFIG)["groups"]
    (tmp_path / "rules.json").write_text(json.dumps({"groups": groups}))
    checked = promtool(
        version, "check", "rules", "--lint=all", "--lint-fatal", "rules.json", folder=tmp_path
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    rules = [rule for group in groups for rule in group["rules"]]
    series = [found for rule in rules for found in SERIES.findall(rule["expr"])]
    assert len(series) > 50
    assert all(matchers.startswith(f"{{{SELECTOR}") for matchers in series)
    values = {rule["record"]: rule["expr"] for rule in rules if "record" in rule}
    assert values["global:esms_call_success:objective"] == "0.97"
    assert values["global:esms_calls_minimum:threshold"] == "5"
    assert values["global:esms_call_failure_ratio:threshold"] == "0.3"
    for alert in (rule for rule in rules if "alert" in rule):
        url = alert["annotations"]["runbook_url"]
        assert url == f"https://wiki.example.com/esms/{alert['alert']}.md"
    (tmp_path / "test.yaml").write_text(OUTAGE)
    tested = promtool(version, "test", "rules", "test.yaml", folder=tmp_path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_dashboards_with_another_configuration() -> None:
    for name, board in rendered(CONFIG)["dashboards"].items():
        expressions = [target["expr"] for panel in panels(board) for target in panel["targets"]]
        expressions += [
            variable["query"]
            for variable in board["templating"]["list"]
            if "label_values" in str(variable.get("query"))
        ]
        selectors = [one for text in expressions for one in re.findall(r"(\w+)(\{[^}]*\})?", text)]
        series = [matchers for metric, matchers in selectors if matchers or "esms_" in metric]
        assert len(series) > 20
        assert all(matchers.startswith(f"{{{SELECTOR}") for matchers in series), name
        links = [link["url"] for link in board["links"] if link["title"] == "Runbooks"]
        assert links == ["https://wiki.example.com/esms"]


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ("{ thresholds+: { calls: 5 } }", "unknown thresholds: calls"),
        ("{ objective: 97 }", "between 0 and 1"),
        ("{ objective: '0' }", "between 0 and 1"),
    ],
)
def test_a_wrong_configuration_is_refused(config: str, problem: str) -> None:
    shown = render(config)
    assert shown.returncode != 0
    assert problem in shown.stderr
