"""Write the references: `make docs`."""

from __future__ import annotations

from pathlib import Path

from tools.reference import configuration, logs, metrics

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    "configuration.md": configuration.page,
    "logs.md": logs.page,
    "metrics.md": metrics.page,
}


def main() -> None:
    """Write every page anew."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
