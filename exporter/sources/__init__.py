"""Sources of calls.

To add a source: a module in this package, its configuration model, and a line in `SOURCES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeVar, cast

from exporter.config.watch import WatchConfig
from exporter.source_status import SourceStatus
from exporter.sources.api import ApiSource
from exporter.sources.callback import CallbackSource
from exporter.sources.configuration import ConfigurationSource
from exporter.sources.files import FilesSource
from exporter.sources.source import Source, SourceContext
from exporter.sources.sql import SqlSource
from exporter.tracker import CallTracker

SOURCES: Final[tuple[type[Source], ...]] = (
    ConfigurationSource,
    FilesSource,
    ApiSource,
    CallbackSource,
    SqlSource,
)

S = TypeVar("S", bound=Source)


class Sources:
    """All sources of an exporter.

    Args:
        tracker: receives their calls.
    """

    def __init__(self, tracker: CallTracker) -> None:
        self._sources: dict[type[Source], Source] = {kind: kind(tracker) for kind in SOURCES}

    def __iter__(self) -> Iterator[Source]:
        return iter(self._sources.values())

    def __getitem__(self, kind: type[S]) -> S:
        return cast("S", self._sources[kind])

    @property
    def statuses(self) -> list[SourceStatus]:
        """The statuses of all configured sources."""
        return [one for source in self for one in source.statuses if one.shown]

    async def configure(self, watch: WatchConfig, context: SourceContext) -> None:
        """Apply a configuration to every source; see `Source`.

        All sources add calls before any source removes calls, so that a call that moves from one
        source to another stays watched.

        Raises:
            LedgerError: the ledger failed.
        """
        for source in self:
            await source.configure(watch, context)
        for source in self:
            await source.remove_missing()
