"""Collecting everything that is wrong, within bounds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NoReturn

from exporter.errors import ConfigError, Problem

SHOWN = 100
"""How many problems are told one by one; the rest is counted."""

# Where a value was pasted in the place of a key it must not show: no key of ours is longer or
# has more digits, and hardly a credential is as short or has as few.
_KEY = re.compile(r"[A-Za-z_-]{1,40}[0-9]{0,3}", re.ASCII)


def key_path(parts: Iterable[str | int]) -> str:
    """Render keys and indices as `accounts[0].api_key`; what may not be a key becomes `?`."""
    path = ""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f"{'.' if path else ''}{part if _KEY.fullmatch(part) else '?'}"
    return path


class Problems:
    """The problems of one file.

    However many there are, only the first `SHOWN` of the file are kept.
    """

    def __init__(self, file: str) -> None:
        self.total = 0
        self._file = file
        self._found: list[Problem] = []

    def add(self, line: int, parts: Iterable[str | int], message: str) -> None:
        """Note a problem; `parts` are the keys and indices that lead to it."""
        self.total += 1
        self._found.append(Problem(self._file, line, key_path(parts), message))
        if len(self._found) > 4 * SHOWN:
            self._keep_first()

    def _keep_first(self) -> None:
        self._found.sort(key=lambda problem: problem.line)
        del self._found[SHOWN:]

    def told(self) -> tuple[Problem, ...]:
        """Return what was noted, in the order of the file, and how many more there are."""
        self._keep_first()
        more = self.total - len(self._found)
        rest = [Problem(self._file, 0, "", f"and {more} more problems")] if more else []
        return (*self._found, *rest)

    def fail(self) -> NoReturn:
        """Raise what was noted.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(self.told())
