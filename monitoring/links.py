"""Where links to the project's pages lead."""

from __future__ import annotations

from typing import Final

HOME: Final = "https://example.com/esms-exporter"
"""The project's home page. Wherever the repository is published, this is the one line to change."""

RUNBOOKS: Final = f"{HOME}/docs/runbooks"
