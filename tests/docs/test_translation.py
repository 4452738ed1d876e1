"""The README in Vietnamese says what the one in English says."""

from __future__ import annotations

import re

from tests.docs import pages

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
