from __future__ import annotations

import pytest

from exporter.sources.patterns import covered, literals


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/c/a.txt", "/c/a.txt", True),
        ("/c/a.txt", "/c/b.txt", False),
        ("/c/*.txt", "/c/b.txt", True),
        ("/c/*.txt", "/c/d/b.txt", False),
        ("/c/**/a.txt", "/c/a.txt", True),
        ("/c/**/a.txt", "/c/d/e/a.txt", True),
        ("/c/**/a.txt", "/d/a.txt", False),
        ("/**", "/c/a.txt", True),
        ("/c/[[]1].txt", "/c/[1].txt", True),
        ("/" + "**/" * 300 + "a.txt", "/" + "b/" * 300 + "b.txt", False),
    ],
)
def test_what_a_pattern_covers(pattern: str, path: str, *, expected: bool) -> None:
    assert covered(path, [pattern]) is expected


def test_paths_without_a_wildcard() -> None:
    assert literals(["/a*/b.txt", "/c.txt", "/[[]d].txt", "/e[1].txt"]) == ["/c.txt", "/[d].txt"]
