"""The status of the sources of calls and of the files of the configuration.

The sources write it; the status page and the metrics read it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import islice
from typing import Final

import structlog

MAX_SHOWN: Final = 10
"""Items of a source whose problems are shown at a time."""

_log = structlog.get_logger(__name__)


class SourceStatus:
    """The status of a source, for metrics, the status page and the log.

    Args:
        name: the label `source` in metrics.

    Attributes:
        shown: the source is configured.
        errors: readings that failed, or that found something to refuse.
        last_success: Unix time; 0 before the first success.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.shown = False
        self.errors = 0
        self.last_success = 0.0
        # By item (a file, a query): the text, and what must be new in it to be logged again.
        self._problems: dict[str, tuple[str, frozenset[str]]] = {}

    @property
    def problem(self) -> str:
        """The current problems, one a line; empty where there are none."""
        texts = (
            text if text.startswith(item) else f"{item}: {text}"
            for item, (text, _) in islice(self._problems.items(), MAX_SHOWN)
        )
        return "\n".join(texts)

    def configure(self, *, shown: bool) -> None:
        """Start anew with another configuration; the numbers of a source that stays go on."""
        self._problems.clear()
        if not shown:
            self.errors, self.last_success = 0, 0.0
        self.shown = shown

    def succeed(self) -> None:
        """Note that the source was read, now."""
        self.last_success = time.time()

    def count_error(self) -> None:
        """Count a reading that failed, or that found something to refuse."""
        self.errors += 1

    def forget(self, item: str) -> None:
        """Drop what was reported on an item that is gone."""
        self._problems.pop(item, None)

    def report(self, item: str, problem: str | None, kinds: Iterable[str] | None = None) -> bool:
        """Report what is wrong with an item; it is logged once when it appears and once when gone.

        Args:
            item: a file, a query, or empty for the source as a whole.
            problem: None where nothing is wrong.
            kinds: what is compared with the last report, in place of the text itself.

        Returns:
            Whether the problem is new, and was logged.
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


class ConfigStatus:
    """Which files of the configuration could not be loaded, and why.

    Attributes:
        problems: what is wrong with each file that could not be loaded the last time, by its kind.
        loaded_at: when the exporter's own configuration was last loaded (Unix time); 0 before that.
    """

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}
        self.loaded_at = 0.0

    def loaded(self, kind: str) -> None:
        """Note that a file was loaded."""
        self.problems.pop(kind, None)

    def failed(self, kind: str, problem: str) -> None:
        """Note why a file could not be loaded."""
        self.problems[kind] = problem
