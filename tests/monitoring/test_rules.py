from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.config.watch import RESERVED_LABELS
from exporter.metrics.catalogue import Catalogue
from tests.monitoring.rules import (
    ALERTS,
    CASES,
    EXPRESSIONS,
    NAMES,
    RECORDED,
    ROOT,
    RULES,
    Rule,
    promtool,
    series_of,
    write_cases,
)
from tests.programs import PROMETHEUS, every_prometheus
from tools.reference.metrics import name_of, own_metrics

FIRES, SILENT = "fires", "stays silent"
KINDS = (FIRES, SILENT, "survives a restart", "fires on the first failure")


@every_prometheus
def test_promtool_accepts_the_rules(version: str) -> None:
    checked = promtool(version, "check", "rules", "--lint=all", "--lint-fatal", *RULES)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("version", "cases"),
    [
        pytest.param(version, cases, id=f"{version}-{cases.stem}")
        for version in PROMETHEUS
        for cases in CASES
        # Prometheus 2.42 has no native histograms; the cases of a week take 20 s of CPU.
        if version != "2" or cases.stem not in {"native_histograms", "traffic"}
    ],
)
def test_cases(version: str, cases: Path, tmp_path: Path) -> None:
    # Every minute with Prometheus 3, which shows whether a symptom fires a minute before its cause.
    # The other version evaluates the same rules: every two minutes take half of the CPU time.
    seldom = version == "2" and cases.stem == "causes"
    options = {"evaluation_interval": "2m"} if seldom else {}
    tested = promtool(version, "test", "rules", *write_cases(cases, tmp_path, **options))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_windows_are_the_same_on_every_version() -> None:
    """Prometheus 3 leaves out the sample at the left edge of a window, which 2.42 takes in."""
    windows = [
        window for expression in EXPRESSIONS for window in re.findall(r"\[(.*?)\]", expression)
    ]
    assert len(windows) > 50
    for window in windows:
        assert re.fullmatch(r"\d+[smhdw]1ms", window), window


def all_cases() -> dict[str, dict[str, Any]]:  # Any: as promtool has it
    tests = [test for path in CASES for test in yaml.safe_load(path.read_text())["tests"]]
    return {test["name"]: test for test in tests if test["name"].startswith("Esms")}


def test_every_alert_has_its_cases() -> None:
    cases = all_cases()
    assert {f"{name} {kind}" for name in NAMES for kind in KINDS} <= cases.keys()
    assert {name.split()[0] for name in cases} == set(NAMES)
    fired = set()
    for name in NAMES:
        (case,) = cases[f"{name} {FIRES}"]["alert_rule_test"]
        assert case["alertname"] == name
        fired |= {(name, *(alert["exp_labels"].items())) for alert in case["exp_alerts"]}
        counts = {
            kind: {
                sample["value"]
                for test in cases[f"{name} {kind}"]["promql_expr_test"]
                for sample in test["exp_samples"]
                if f'ALERTS{{alertname="{name}", alertstate="firing"}}' in test["expr"]
            }
            for kind in KINDS
        }
        assert counts[SILENT] == {0}
        assert max(counts[KINDS[3]]) > 0
        assert counts[KINDS[2]]
        values = [series["values"] for series in cases[f"{name} {KINDS[2]}"]["input_series"]]
        assert any("stale" in value for value in values), f"{name}: nothing is ever away"
    assert len(fired) >= len(ALERTS)


def test_every_alert_says_what_to_do() -> None:
    home = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Homepage"]
    for rule in ALERTS:
        assert re.fullmatch(r"Esms[A-Z]\w+", rule["alert"])
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["annotations"]["description"].endswith((".", "{{ end }}."))
        assert rule["annotations"]["runbook_url"] == f"{home}/docs/runbooks/{rule['alert']}.md"


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    pages = sorted((ROOT / "docs" / "runbooks").glob("*.md"))
    assert [page.stem for page in pages] == NAMES
    for page in pages:
        lines = page.read_text().splitlines()
        assert lines[0] == f"# {page.stem}"
        assert [line for line in lines if line.startswith("#")][1:] == [
            "## Meaning",
            "## Impact",
            "## Diagnosis",
            "## Mitigation",
        ]


def test_the_documentation_names_alerts_that_there_are() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"\bEsms[A-Z]\w+", page.read_text())}
    assert named == set(NAMES)


def test_the_list_of_alerts() -> None:
    page = (ROOT / "docs" / "alerts.md").read_text()
    rows = re.findall(
        r"^\| \[(\w+)\]\(runbooks/\1\.md\) \| ([\w, ]+) \| .+ \| ([\w ]+) \|$", page, re.MULTILINE
    )
    assert sorted(rows) == [
        (
            name,
            ", ".join(dict.fromkeys(rule["labels"]["severity"] for rule in rules)),
            rules[0].get("for", "at once"),
        )
        for name in NAMES
        if (rules := [rule for rule in ALERTS if rule["alert"] == name])
    ]


def test_thresholds_are_in_one_place() -> None:
    page = (ROOT / "docs" / "alerts.md").read_text()
    thresholds = {name: value for name, value in RECORDED.items() if name.startswith("global:")}
    assert (
        dict(re.findall(r"^\| `(global:[\w:]+)` \| ([\d.]+) \|", page, re.MULTILINE)) == thresholds
    )
    used = set().union(*(series_of(str(rule["expr"])) for rule in ALERTS))
    assert {name for name in used if name.startswith("global:")} == thresholds.keys()
    # Beside them, an alert compares with 0, with how fast a budget burns, or with another series.
    for rule in ALERTS:
        compared = re.findall(r"[<>=]=? *([\d.]+)(?![\d.]| \* \(1 - scalar)", str(rule["expr"]))
        assert set(compared) <= {"0"}, rule["alert"]


def causes(rule: Rule) -> set[str]:
    """Return the alerts that silence one."""
    found = re.findall(r'ALERTS\{\s*alertname=~?\s*"([\w|]+)"', str(rule["expr"]))
    return {name for names in found for name in names.split("|")}


def test_the_table_of_causes() -> None:
    page = (ROOT / "docs" / "alerts.md").read_text()
    listed = {
        (cause, symptom)
        for first, second in re.findall(r"^\| (Esms[^|]+) \| (Esms[^|]+) \|", page, re.MULTILINE)
        for cause in re.findall(r"Esms\w+", first)
        for symptom in re.findall(r"Esms\w+", second)
    }
    assert listed == {(cause, rule["alert"]) for rule in ALERTS for cause in causes(rule)}


def test_only_alerts_that_fire_silence_others() -> None:
    """Otherwise a symptom could stay silent while no alert fires."""
    places = {name: index for index, name in enumerate(dict.fromkeys(r["alert"] for r in ALERTS))}
    for rule in ALERTS:
        for selector in re.findall(r"ALERTS\{(.*?)\}", str(rule["expr"])):
            assert 'alertstate="firing"' in selector or (
                rule["alert"] == "EsmsCanaryFailed" and 'alertstate="pending"' in selector
            )
        for cause in causes(rule) - {rule["alert"]}:
            assert places[cause] < places[rule["alert"]], "causes come first"


def test_the_list_of_recording_rules() -> None:
    page = (ROOT / "docs" / "alerts.md").read_text().partition("## Recording rules\n")[2]
    page = page.partition("\n## ")[0]
    listed = set()
    for first, more in re.findall(r"^\| `([\w:]+)`((?: `\.\.\.\w+`)*) \|", page, re.MULTILINE):
        stem = re.sub(r"\d+[a-z]$", "", first)
        listed |= {first, *(stem + window for window in re.findall(r"\.\.\.(\w+)", more))}
    assert listed == {name for name in RECORDED if not name.startswith("global:")}
    for name in listed:
        assert re.fullmatch(
            r"account(_labels|_operation)?:esms_\w+:(max|[a-z_]+\d+[mhd])"
            r"|job:esms_\w+:count|canary:esms_\w+:max",
            name,
        )


def test_no_label_of_the_users_is_taken_for_one_of_the_rules() -> None:
    named = {
        label
        for expression in EXPRESSIONS
        for labels in re.findall(r"\b(?:by|without|on|ignoring) \(([\w, ]*)\)", expression)
        for label in labels.split(", ")
    }
    assert {"cluster", "pod", "code"} < named
    named -= {"", "target"}  # metrics of targets carry no label of the users
    assert named | {label for rule in ALERTS for label in rule["labels"]} <= RESERVED_LABELS


def test_rules_ask_for_metrics_that_there_are() -> None:
    exposed = {
        name_of(metric) + suffix
        for metric in own_metrics(Catalogue())
        for suffix in (("", "_bucket", "_sum", "_count") if metric.type == "histogram" else ("",))
    }
    for expression in EXPRESSIONS:
        assert series_of(expression) <= exposed | RECORDED.keys(), expression
        assert not re.search(r"\bavg", expression), "a mean of ratios is no ratio"
    for page in (ROOT / "docs" / "alerts.md", *(ROOT / "docs" / "runbooks").glob("*.md")):
        assert series_of(page.read_text()) <= exposed | RECORDED.keys(), page.name
