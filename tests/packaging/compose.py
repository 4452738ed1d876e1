"""The services of deploy/compose, as Compose's own loader reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import subprocesses
from tests.programs import program

FOLDER = Path(__file__).parents[2] / "deploy" / "compose"

_VARIABLE = re.compile(r"\$\{(\w+)(?::(-|\?)([^}]*))?\}")


def variables(file: str) -> dict[str, str]:
    """Return what a file such as `demo.env` sets."""
    lines = (FOLDER / file).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def project(environ: Mapping[str, str]) -> dict[str, Any]:  # Any: it is a document
    """Return the project; the loader refuses what the specification does not know.

    Raises:
        KeyError: a variable that has to be there is not.
    """

    def value(found: re.Match[str]) -> str:
        name, sign, default = found.groups()
        return environ.get(name) or (default if sign == "-" else environ[name])

    text = _VARIABLE.sub(value, (FOLDER / "compose.yaml").read_text())
    loader = program(
        "compose-spec",
        "go install github.com/compose-spec/compose-go/v2/cmd, and name it compose-spec",
    )
    shown = subprocesses.run(
        loader, "-no-path-resolution", "-format=json", "/dev/stdin", input=text
    )
    assert shown.returncode == 0, shown.stderr
    document: dict[str, Any] = json.loads(shown.stdout)
    return document
