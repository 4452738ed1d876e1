"""`python -m tools.release TAG`: check that a tag can be released, and print the release notes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

import exporter
from monitoring.links import HOME

_CHANGELOG: Final = Path(__file__).parents[1] / "CHANGELOG.md"


def release_notes(tag: str, changelog: str, version: str, home: str) -> str:
    """Return the section of a version in the changelog.

    Raises:
        ValueError: the tag cannot be released.
    """
    if tag != f"v{version}":
        raise ValueError(f"{tag}: the version in exporter/__init__.py is {version}")
    if "//example." in home:
        raise ValueError(f"{home} is a placeholder: run `make homepage HOMEPAGE=https://...`")
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |^\[[^]]+\]: |\Z)"
    section = re.search(heading, changelog, re.MULTILINE | re.DOTALL)
    if section is None or not section[1].strip():
        raise ValueError(f"CHANGELOG.md has no section `## [{version}] - YYYY-MM-DD`")
    # A release shows a line break for each line of a paragraph, and knows no relative links.
    text = re.sub(r"(?<=\S)\n *(?=[^\s#*-])", " ", section[1].strip())
    return re.sub(r"(?<=\]\()(?!\w+:)", f"{home}/", text) + "\n"


def main() -> None:
    """Print the notes; exit with 1 and the reason if the tag cannot be released."""
    try:
        notes = release_notes(sys.argv[1], _CHANGELOG.read_text(), exporter.__version__, HOME)
    except ValueError as error:
        sys.exit(str(error))
    sys.stdout.write(notes)


if __name__ == "__main__":
    main()
