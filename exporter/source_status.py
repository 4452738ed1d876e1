"""How the sources of calls and the files of the configuration are: plain state.

The sources write it; the status page and the metrics read it.
"""

from __future__ import annotations

import time
from collections.abc import ItemsView
from dataclasses import dataclass


@dataclass(slots=True)
class SourceStatus:
    """The state of one source.

    Attributes:
        last_success: when it was last read without a problem (Unix time); 0 before that.
        errors: how many readings failed, or found something that was refused.
        problem: what is wrong with it now; empty for nothing.
    """

    last_success: float = 0.0
    errors: int = 0
    problem: str = ""

    def succeeded(self) -> None:
        """Note that it was read without a problem."""
        self.last_success = time.time()


class SourceStatuses:
    """The state of each source that is configured, by its name."""

    def __init__(self) -> None:
        self._by_name: dict[str, SourceStatus] = {}

    def __getitem__(self, source: str) -> SourceStatus:
        """Return the state of a source; one that is not known yet begins here."""
        return self._by_name.setdefault(source, SourceStatus())

    def items(self) -> ItemsView[str, SourceStatus]:
        """Return every source with its state."""
        return self._by_name.items()

    def configure(self, source: str, *, used: bool) -> None:
        """Keep the state of a source that is in use; forget it otherwise."""
        if used:
            self[source]
        else:
            self._by_name.pop(source, None)


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
