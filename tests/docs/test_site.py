"""The documentation site has every page, and links work there too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs import pages
from tests.docs.pages import ROOT
from tools.site import collect, for_python_markdown

FOLDERS = ("docs", "deploy", "monitoring")


def names() -> list[str]:
    """Return the files of the repository that the site may need."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    found += [path for path in ROOT.iterdir() if path.is_file()]
    return [str(path.relative_to(ROOT)) for path in found]


def test_navigation_has_every_page_once() -> None:
    listed = re.findall(r"^ +- (?:[\w ]+: )?(\S+\.md)$", pages.text("mkdocs.yml"), re.MULTILINE)
    assert sorted(listed) == [name for name in pages.names() if re.match(r"docs/|[^/]+$", name)]


def test_links_work_on_the_site(tmp_path: Path) -> None:
    collect(names(), tmp_path)
    assert (tmp_path / "docs/metrics.md").read_text().startswith("<!-- Written by")
    assert "- [alerts.yaml](alerts.yaml)" in (tmp_path / "monitoring/rules/README.md").read_text()
    assert not (tmp_path / "pyproject.toml").exists()


def test_broken_links_are_found(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match=r"README.md: config.example.yaml"):
        collect((name for name in names() if name != "config.example.yaml"), tmp_path)


def test_lists_are_as_python_markdown_needs_them() -> None:
    page = "1. one\n\n   ```\n   code\n   ```\n\n```\n  code\n```\n"
    assert for_python_markdown(page) == page.replace("   ", "    ")
