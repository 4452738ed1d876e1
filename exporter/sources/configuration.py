"""The source `config` (`watch.calls` of the configuration file), and reloading of such files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from exporter.config import NamedFiles, WatchConfig
from exporter.config.files import FileStat, stat_file
from exporter.sources.source import Source, SourceContext, new_call
from exporter.tracker import CallTracker

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class ConfigurationSource(Source):
    """Adds the calls of `watch.calls`.

    Attributes:
        refused: number of calls above `watch.max_calls` by account.
    """

    name = "config"

    def __init__(self, tracker: CallTracker) -> None:
        super().__init__(tracker)
        self._rows: set[int] = set()
        self.refused = Counter[str]()

    async def configure(self, watch: WatchConfig, _context: SourceContext) -> None:
        calls = map(new_call, watch.calls)
        self._rows, self.refused = await self._tracker.add(self.name, calls)

    async def remove_missing(self) -> None:
        """Remove the calls that are not in `watch.calls` any more."""
        await self._tracker.keep_only(self.name, self._rows)
        self._rows = set()
        if self.refused:
            _log.warning(
                "configured calls exceed watch.max_calls",
                calls=self.refused.total(),
                accounts=", ".join(sorted(self.refused)),
            )

    def loaded(self) -> None:
        self._status.configure(shown=True)
        self._status.succeed()

    def not_loaded(self) -> None:
        self._status.count_error()


class ConfigFile(Generic[T]):
    """A configuration file and the other files that it names, which `read` records. Blocking."""

    def __init__(self, path: Path, read: Callable[[Path, NamedFiles], T]) -> None:
        self._path = path
        self._read = read
        self._files = NamedFiles()
        self._seen: Mapping[Path, FileStat | None] = {}  # at the last check

    def load(self) -> T:
        """Read the file, or raise a `ConfigError` with every problem."""
        before, self._files = self._files, NamedFiles()
        self._files.note(self._path)
        try:
            return self._read(self._path, self._files)
        finally:
            self._seen = self._files.stats
            for path in sorted(self._files.exposed - before.exposed):
                _log.warning("secret file is world-readable", file=str(path))

    def changed(self) -> bool:
        """Return whether a file has changed since it was last read, and is complete."""
        before, self._seen = self._seen, {path: stat_file(path) for path in self._files.stats}
        return any(
            now == before[path] != self._files.stats[path] for path, now in self._seen.items()
        )
