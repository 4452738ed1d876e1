"""The rule files, read, and promtool, which runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests import subprocesses
from tests.programs import of_prometheus

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "monitoring" / "rules").glob("*.yaml"))
CASES = sorted((ROOT / "monitoring" / "tests").glob("*.yaml"))

Rule = dict[str, Any]  # Any: as a rule file has it


def _rules() -> list[Rule]:
    documents = [yaml.safe_load(path.read_text()) for path in RULES]
    return [rule for file in documents for group in file["groups"] for rule in group["rules"]]


ALERTS = [rule for rule in _rules() if "alert" in rule]
NAMES = sorted({rule["alert"] for rule in ALERTS})
RECORDED = {rule["record"]: str(rule["expr"]) for rule in _rules() if "record" in rule}
EXPRESSIONS = [str(rule["expr"]) for rule in _rules()]


def series_of(expression: str) -> set[str]:
    """Return the names of the exporter's and of recorded series in an expression."""
    return set(re.findall(r"\b(?:\w+:)?esms_\w+(?::\w+)?", expression))


def name_of_rule(rule: Rule) -> str:
    return str(rule.get("alert") or rule["record"])


def read_by(expression: str) -> set[str]:
    """Return the series and the alerts that an expression reads."""
    return series_of(expression) | set(re.findall(r"\b(?:Esms\w+|up)\b", expression))


def rules_for(case: Rule, groups: list[Rule]) -> list[Rule]:
    """Return the groups with the rules that can change what a case expects.

    Others cost only time: neither an expectation nor one of these rules reads what they make, or
    none of the series that they read is there.
    """
    reads: dict[str, set[str]] = {}
    there = set().union(*(read_by(series["series"]) for series in case["input_series"]))
    for rule in (rule for group in groups for rule in group["rules"]):
        read = reads.setdefault(name_of_rule(rule), set())
        read |= read_by(str(rule["expr"]))
        if not read or "absent(" in rule["expr"]:
            there.add(name_of_rule(rule))
    constants = {name for name, read in reads.items() if not read}
    while more := {name for name, read in reads.items() if read & there - constants} - there:
        there |= more
    needed = {alert["alertname"] for alert in case.get("alert_rule_test", ())}
    for expression in (sample["expr"] for sample in case.get("promql_expr_test", ())):
        needed |= read_by(expression)
        if re.search(r"ALERTS\{(?!alertname)", expression):
            needed |= set(NAMES)
    while more := set().union(*(reads.get(name, ()) for name in needed & there)) - needed:
        needed |= more
    kept = needed & there
    return [
        {**group, "rules": rules}
        for group in groups
        if (rules := [rule for rule in group["rules"] if name_of_rule(rule) in kept])
    ]


def write_cases(cases: Path, folder: Path, **options: str) -> list[Path]:
    """Write each case of a file as a file of its own, with no more rules than it needs.

    `options` replace those of the file, such as `evaluation_interval`.
    """
    document = yaml.safe_load(cases.read_text())
    rule_files = [
        yaml.safe_load((cases.parent / name).read_text()) for name in document["rule_files"]
    ]
    groups = [group for file in rule_files for group in file["groups"]]
    written = []
    for number, case in enumerate(document["tests"]):
        kept = {"groups": rules_for(case, groups)}
        names = {group["name"] for group in kept["groups"]}
        order = [name for name in document.get("group_eval_order", ()) if name in names]
        (folder / f"rules-{number}.yaml").write_text(json.dumps(kept))
        written.append(folder / f"case-{number}.yaml")
        written[-1].write_text(
            json.dumps(
                {
                    **document,
                    **options,
                    "rule_files": [f"rules-{number}.yaml"],
                    "group_eval_order": order,
                    "tests": [case],
                }
            )
        )
    return written


def promtool(
    version: str, *command: str | Path, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    # A quarter of its CPU time goes into collecting garbage that the machine has room for.
    environ = {**os.environ, "GOGC": "800"}
    return subprocesses.run(of_prometheus("promtool", version), *command, cwd=folder, env=environ)
