"""Every link within the project leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath
from urllib.parse import unquote

import pytest

from tests.docs import pages
from tests.docs.pages import ROOT


def problem(page: str, target: str) -> str | None:
    """Return what is wrong with a link; None where it leads somewhere, or out of the project."""
    if "://" in target or target.startswith("mailto:"):
        return None
    path, _, anchor = unquote(target).partition("#")
    name = normpath(PurePosixPath(page).parent / path) if path else page
    if not (ROOT / name).exists():
        return f"there is no {name}"
    if anchor and name.endswith(".md") and anchor not in pages.anchors(name):
        return f"{name} has no heading #{anchor}; it has {sorted(pages.anchors(name))}"
    return None


@pytest.mark.parametrize("page", pages.names())
def test_links_lead_somewhere(page: str) -> None:
    told = [
        f"{page}:{line}: ({target}): {wrong}"
        for line, target in pages.links(page)
        if (wrong := problem(page, target))
    ]
    assert not told, "\n" + "\n".join(told)


def test_dead_links_are_found() -> None:
    assert {"README.md", "docs/sources.md"} <= set(pages.names())
    for target in ("missing.md", "docs/sources.md#missing", "#missing", "docs/missing.png"):
        assert problem("README.md", target), target
    for target in ("docs/sources.md#the-http-api", "#tests", "https://example.com/missing"):
        assert problem("README.md", target) is None, target


def test_every_page_of_docs_is_in_the_list_of_the_readme() -> None:
    listed = {target.partition("#")[0] for _, target in pages.links("README.md")}
    folders = {f"{Path(target)}/" for target in listed if (ROOT / target).is_dir()}
    for page in pages.names():
        if page.startswith("docs/"):
            assert page in listed or any(map(page.startswith, folders)), f"README.md: name {page}"


def test_pages_name_files_of_the_project_that_exist() -> None:
    named = [
        (page, path)
        for page in pages.names()
        for path in pages.code_spans(page)
        if re.fullmatch(r"(tests|benchmarks|tools|monitoring)/[\w./-]+", path)
    ]
    assert len(named) > 20
    assert not [(page, path) for page, path in named if not (ROOT / path).exists()]
