"""Sources of calls.

To add a source: a module in this package, its configuration model, and an attribute of `Sources`.
"""

from __future__ import annotations

from collections.abc import Iterator

from exporter.config.watch import WatchConfig
from exporter.source_status import SourceStatus
from exporter.sources.api import ApiSource
from exporter.sources.callback import CallbackSource
from exporter.sources.configuration import ConfigurationSource
from exporter.sources.files import FilesSource
from exporter.sources.source import Source, SourceContext
from exporter.sources.sql import SqlSource
from exporter.tracker import CallTracker


class Sources:
    """All sources of an exporter; `tracker` receives their calls."""

    def __init__(self, tracker: CallTracker) -> None:
        self.config = ConfigurationSource(tracker)
        self.files = FilesSource(tracker)
        self.api = ApiSource(tracker)
        self.callback = CallbackSource(tracker)
        self.sql = SqlSource(tracker)

    def __iter__(self) -> Iterator[Source]:
        return iter((self.config, self.files, self.api, self.callback, self.sql))

    @property
    def statuses(self) -> list[SourceStatus]:
        """The statuses of all configured sources."""
        return [one for source in self for one in source.statuses if one.shown]

    async def configure(self, watch: WatchConfig, context: SourceContext) -> None:
        """Apply a configuration to every source; raise `LedgerError` if the ledger fails.

        All sources add calls before any source removes calls, so that a call that moves from one
        source to another stays watched.
        """
        for source in self:
            await source.configure(watch, context)
        for source in self:
            await source.remove_missing()
