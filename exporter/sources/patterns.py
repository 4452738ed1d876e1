"""Patterns of `watch.files`: which files they find, and which they would."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Final

_ESCAPED: Final = re.compile(r"\[([*?[])\]")


def found(patterns: Sequence[str]) -> list[str]:
    """Return the paths that patterns find, and those that they name, there or not. Blocking."""
    paths = (path for pattern in patterns for path in glob.iglob(pattern, recursive=True))  # noqa: PTH207 - Path.glob leaves out what it cannot look into
    return sorted({*literals(patterns), *paths})


def literals(patterns: Iterable[str]) -> list[str]:
    """Return the paths that are named without a wildcard."""
    return [
        _ESCAPED.sub(r"\1", pattern)
        for pattern in patterns
        if not glob.has_magic(_ESCAPED.sub("", pattern))
    ]


def covered(path: str, patterns: Iterable[str]) -> bool:
    """Tell whether a pattern would find a path, if it were there."""
    return any(_matches(pattern.split("/"), path.split("/")) for pattern in patterns)


def _matches(pattern: Sequence[str], path: Sequence[str]) -> bool:
    # The numbers of the parts of the pattern that may be next.
    reached = _with_skips(pattern, {0})
    for part in path:
        going_on = {
            number if pattern[number] == "**" else number + 1
            for number in reached
            if number < len(pattern)
            and (pattern[number] == "**" or fnmatchcase(part, pattern[number]))
        }
        reached = _with_skips(pattern, going_on)
    return len(pattern) in reached


def _with_skips(pattern: Sequence[str], reached: set[int]) -> set[int]:
    # `**` may be no folder at all.
    for number in range(min(reached, default=len(pattern)), len(pattern)):
        if number in reached and pattern[number] == "**":
            reached.add(number + 1)
    return reached
