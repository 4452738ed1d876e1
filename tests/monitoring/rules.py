"""The rule files, read, and promtool, which runs them."""

from __future__ import annotations

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


def promtool(
    version: str, *command: str | Path, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    # A quarter of its CPU time goes into collecting garbage that the machine has room for.
    environ = {**os.environ, "GOGC": "800"}
    return subprocesses.run(of_prometheus("promtool", version), *command, cwd=folder, env=environ)
