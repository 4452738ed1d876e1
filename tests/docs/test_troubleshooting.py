"""What the page on troubles quotes is what the exporter says."""

from __future__ import annotations

import re
from functools import cache

import pytest

from tests.docs import pages
from tests.docs.pages import ROOT

PAGE = "docs/troubleshooting.md"


@cache
def source() -> str:
    """Return the exporter's code, with literals that are continued on the next line as one."""
    code = "\n".join(path.read_text() for path in sorted((ROOT / "exporter").rglob("*.py")))
    return re.sub(r'"\s*\n\s*f?"', "", code)


def events() -> list[str]:
    spans = "\n".join(pages.code_spans(PAGE))
    return re.findall(r'^event=(?:"([^"]+)"|\w+)', spans, re.MULTILINE)


def first_cells(head: str) -> list[str]:
    """Return what stands as code in the first column of the tables whose first head is `head`."""
    tables = re.findall(rf"^\| {head} \|.*\n\|[-|]*\n((?:\|.*\n)+)", pages.text(PAGE), re.MULTILINE)
    rows = [row for table in tables for row in table.splitlines()]
    return [span for row in rows for span in re.findall("`([^`]+)`", row.split(" | ")[0])]


QUOTED = [*events(), *first_cells("message"), *first_cells("event")]


def test_there_is_something_quoted() -> None:
    assert {"account paused", "is in use by another esms-exporter", "source problem"} <= set(QUOTED)


@pytest.mark.parametrize("quoted", sorted({*QUOTED} - {""}))
def test_what_is_quoted_is_said(quoted: str) -> None:
    for part in quoted.split("..."):
        assert part in source(), f"{PAGE}: the exporter says no `{quoted}` any more"


def test_metrics_that_are_named_are_there() -> None:
    """In all pages, the examples of queries and rules too."""
    known = set(re.findall(r"^## (esms_\w+)$", pages.text("docs/metrics.md"), re.MULTILINE))
    suffixes = re.compile("_(bucket|count|sum)$")
    for page in pages.names():
        if page == "CHANGELOG.md":
            continue  # tells of what was
        for name in re.findall(r"(?<![\w:.-])esms_[a-z_]*[a-z](?![\w:*])", pages.text(page)):
            assert suffixes.sub("", name) in known, f"{page}: there is no {name}"


def test_values_that_are_named_are_explained() -> None:
    """`status="no_answer"` and its like, in all pages."""
    page = pages.text("docs/metrics.md")
    for label in ("result", "status", "state", "outcome", "operation"):
        # Some metrics have values of their own, which are explained apart.
        head = rf"^### {label}(?: of [^\n]*)?\n(.*?)(?=^##|\Z)"
        values = "\n".join(re.findall(head, page, re.MULTILINE | re.DOTALL))
        explained = set(re.findall(r"^\| `(\w+)` \|", values, re.MULTILINE))
        assert explained
        for name in pages.names():
            for value in re.findall(rf'\b{label}="(\w+)"', pages.text(name)):
                assert value in explained, f'{name}: there is no {label}="{value}"'
