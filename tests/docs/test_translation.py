"""Vietnamese pages have the same contents as the English ones."""

from __future__ import annotations

import re

import pytest

from tests.docs import pages

RUNBOOKS = [name for name in pages.names() if name.startswith("docs/vi/runbooks/")]
ENGLISH, VIETNAMESE = "README.md", "README.vi.md"


def test_headings_correspond() -> None:
    levels = [[level for level, _ in pages.headings(page)] for page in (ENGLISH, VIETNAMESE)]
    assert levels[0] == levels[1]


def test_blocks_are_the_same() -> None:
    theirs = [(block.language, block.text) for block in pages.blocks(VIETNAMESE)]
    assert theirs == [(block.language, block.text) for block in pages.blocks(ENGLISH)]


def test_code_is_the_same() -> None:
    """Names of metrics, keys, options and paths are not translated, and none is left out."""
    english, vietnamese = (set(pages.code_spans(page)) for page in (ENGLISH, VIETNAMESE))
    assert english == vietnamese


def test_links_are_the_same() -> None:
    english, vietnamese = (
        [target for _, target in pages.links(page) if target not in {ENGLISH, VIETNAMESE}]
        for page in (ENGLISH, VIETNAMESE)
    )
    # Anchors within the page itself are made of its own headings.
    assert [re.sub("^#.*", "#", one) for one in english] == [
        re.sub("^#.*", "#", one) for one in vietnamese
    ]


def test_tables_have_the_same_rows() -> None:
    rows = [re.findall(r"^ *\|", pages.prose(page), re.MULTILINE) for page in (ENGLISH, VIETNAMESE)]
    assert len(rows[0]) == len(rows[1])


def test_each_leads_to_the_other() -> None:
    for page, other in ((ENGLISH, VIETNAMESE), (VIETNAMESE, ENGLISH)):
        assert other in [target for _, target in pages.links(page)]


@pytest.mark.parametrize("page", RUNBOOKS)
def test_runbooks_have_the_same_steps(page: str) -> None:
    english = page.replace("/vi/", "/")
    assert [level for level, _ in pages.headings(page)] == [
        level for level, _ in pages.headings(english)
    ]
    assert set(pages.code_spans(page)) == set(pages.code_spans(english))
    steps = [
        re.findall(r"^ *(?:[-|]|\d\.)", pages.prose(name), re.MULTILINE) for name in (page, english)
    ]
    assert steps[0] == steps[1]


def test_critical_alerts_have_a_vietnamese_runbook() -> None:
    rows = re.findall(
        r"^\| \[(\w+)\]\(.+\) \| ([\w, ]+) \|", pages.text("docs/alerts.md"), re.MULTILINE
    )
    critical = {name for name, severity in rows if "critical" in severity}
    assert critical
    assert {f"docs/vi/runbooks/{name}.md" for name in critical} <= set(RUNBOOKS)
