"""The status of sources and configuration files, for the status page and the metrics."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import structlog

MAX_SHOWN: Final = 10
"""Maximum of items of a source whose problems are shown."""

_log = structlog.get_logger(__name__)


class SourceStatus:
    """The status of a source.

    Attributes:
        name: the label `source` in metrics.
        shown: whether metrics and the status page show it, because it is configured.
        errors: number of reads that failed or found invalid data.
        last_success: Unix time; 0 before the first success.
    """

    def __init__(self, name: str, *, shown: bool = False) -> None:
        self.name, self.shown = name, shown
        self.errors = 0
        self.last_success = 0.0
        # By item (a file, a query): the text, and the kinds of problems that were logged.
        self._problems: dict[str, tuple[str, frozenset[str]]] = {}

    @property
    def problem(self) -> str:
        """The current problems, one per line; empty if there are none."""
        texts = (
            text if text.startswith(item) else f"{item}: {text}"
            for item, (text, _) in islice(self._problems.items(), MAX_SHOWN)
        )
        return "\n".join(texts)

    def configure(self, *, shown: bool) -> None:
        """Clear the problems after a configuration change; unless `shown`, reset the counts too."""
        self._problems.clear()
        if not shown:
            self.errors, self.last_success = 0, 0.0
        self.shown = shown

    def succeed(self) -> None:
        """Record that the source was read now."""
        self.last_success = time.time()

    def count_error(self) -> None:
        self.errors += 1

    def forget(self, item: str) -> None:
        """Remove the problem of an item that does not exist any more."""
        self._problems.pop(item, None)

    def report(self, item: str, problem: str | None, kinds: Iterable[str] | None = None) -> bool:
        """Set the problem of an item; log it once when it appears and once when it is solved.

        Return whether the problem is new and was logged: whether one of its `kinds` (by default its
        text) was not in the last report. `item` is a file, or empty for the source as a whole.
        """
        known = self._problems.get(item)
        named = {"item": item} if item else {}
        if problem is None:
            if self._problems.pop(item, None):
                _log.info("source recovered", source=self.name, **named)
            return False
        kinds = frozenset([problem] if kinds is None else kinds)
        self._problems[item] = problem, kinds
        if known and kinds <= known[1]:
            return False
        _log.warning("source problem", source=self.name, **named, problem=problem)
        return True


@dataclass(slots=True)
class ConfigStatus:
    """The status of the configuration files."""

    # Of the files whose last load failed, by the kind of the file.
    problems: dict[str, str] = field(default_factory=dict)
    loaded_at: float = 0.0  # when the main configuration was last loaded (Unix time)
