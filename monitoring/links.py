"""Where links to the project's pages lead."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

_PYPROJECT: Final = Path(__file__).parents[1] / "pyproject.toml"

HOME: Final[str] = tomllib.loads(_PYPROJECT.read_text())["project"]["urls"]["Homepage"]
"""The address of the repository's files; `make homepage` sets it."""

RUNBOOKS: Final = f"{HOME}/docs/runbooks"
