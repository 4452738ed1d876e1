"""Vietnamese pages have the same contents as the English ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from os.path import normpath
from pathlib import Path

import pytest

from tests.docs import pages

RUNBOOKS = [name for name in pages.names() if name.startswith("docs/vi/runbooks/")]
# Pages that are translated as a whole, and their translations.
TRANSLATED = {
    "README.md": "README.vi.md",
    **{
        f"docs/{name}": f"docs/vi/{name}"
        for name in ("commands.md", "first-steps.md", "how-it-works.md")
    },
}


def _links(page: str) -> list[str]:
    """Return the targets of links; a translation leads to translations, where there are some."""
    targets = (target.partition("#")[0] for _, target in pages.links(page))
    found = [one if "://" in one else normpath(Path(page).parent / one) for one in targets]
    theirs = [re.sub(r"(?<=^docs/)vi/|-(vi|en)(?=\.png)", "", one) for one in found]
    return [one for one in theirs if one not in {"README.md", "README.vi.md"}]


PARTS: Mapping[str, Callable[[str], object]] = {
    "levels of headings": lambda page: [level for level, _ in pages.headings(page)],
    "blocks": lambda page: [(block.language, block.text) for block in pages.blocks(page)],
    # Names of metrics, keys, options and paths are not translated, and none is left out.
    "code": lambda page: set(pages.code_spans(page)),
    "links": _links,
    "rows of tables": lambda page: len(re.findall(r"^ *\|", pages.prose(page), re.MULTILINE)),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("english", "vietnamese"), TRANSLATED.items())
def test_translations_have_the_same(english: str, vietnamese: str, part: str) -> None:
    assert PARTS[part](english) == PARTS[part](vietnamese)


def test_each_readme_leads_to_the_other() -> None:
    for page, other in (("README.md", "README.vi.md"), ("README.vi.md", "README.md")):
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
